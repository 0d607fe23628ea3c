"""A page to ask at: the composed answer beside the generalist's and a rival's, and why it was composed so. Works offline."""
