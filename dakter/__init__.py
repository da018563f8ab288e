"""dakter: turns a scarce set of labelled SAR images into a better oil-spill segmentation model."""

__version__ = "0.1.0"
