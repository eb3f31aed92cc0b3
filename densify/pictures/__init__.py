"""Pictures of what networks make of an image, and pages that hold them."""
