"""A report on one run of the pipeline, as a single HTML page.

The page needs no script and no network: charts are inline SVG and tooltips are CSS, so
it is small, opens from disk, follows dark mode, and the same run gives the same bytes.
altair with vl-convert would install 88 MB, and embed 0.9 MB of scripts in each page.
"""
