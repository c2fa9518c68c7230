"""How Sphinx turns the lessons into pages; `web/build.py` copies it beside them."""

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

project = html_title = "Batch normalization by hand"
extensions = ["myst_nb", "sphinx.ext.githubpages"]  # the second writes .nojekyll: without it a host may hide _static
nb_execution_mode = "off"
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]  # or pictures are lost
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_theme_options = {"top_of_page_buttons": []}
html_static_path = ["../static"]
html_extra_path = ["../extra"]
html_css_files = ["site.css"]
html_js_files = [("explorer.js", {"defer": "defer"})]
html_copy_source = html_show_sourcelink = False
html_math_renderer = "mathml"
html_use_index = html_show_copyright = False


def setup(app):
    """Write mathematics as MathML, which needs neither a script nor a font."""

    def write(block):
        def visit(self, node):
            self.body.append(tex2mathml(node.astext(), as_block=block))
            raise SkipNode

        return visit, None

    app.add_html_math_renderer("mathml", inline_renderers=write(False), block_renderers=write(True))
