"""A relative BNLIB_DATA is meant from here, but the lessons run in notebooks/."""

import os

if os.environ.get("BNLIB_DATA"):
    os.environ["BNLIB_DATA"] = os.path.abspath(os.environ["BNLIB_DATA"])
