"""Where the tissue is, and what is pen: `detect_tissue` -> `TissueMask`; GeoJSON in and out."""

from wsipipe.tissue.detect import detect_tissue, tissue_settings
from wsipipe.tissue.geojson import read_tissue_geojson, write_tissue_geojson
from wsipipe.tissue.mask import TissueMask
from wsipipe.tissue.roi import read_roi, roi_settings

__all__ = [
    "TissueMask",
    "detect_tissue",
    "read_roi",
    "read_tissue_geojson",
    "roi_settings",
    "tissue_settings",
    "write_tissue_geojson",
]
