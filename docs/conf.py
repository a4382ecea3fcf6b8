"""Sphinx's settings for the site that `make docs` builds from a copy of this folder."""

project = "llamaseek"
extensions = ["myst_nb", "sphinx_copybutton"]
root_doc = "landing"
html_theme = "furo"
html_title = "llamaseek"
html_static_path = ["_static"]
html_css_files = ["site.css"]
nb_execution_mode = "off"  # the notebooks come with their outputs
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = True
suppress_warnings = ["mystnb.unknown_mime_type"]
