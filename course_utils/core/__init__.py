"""The ground: inputs, geometry, images, networks, training and its cache."""
