"""A lab of real kernels on one machine; README.md tells how it is made and used."""
