import pytest
from small_images import rows


@pytest.fixture
def images():
    return rows()
