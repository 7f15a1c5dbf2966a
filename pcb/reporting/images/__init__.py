"""The pages of images: gallery and pair explorer."""
