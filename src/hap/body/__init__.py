"""The body model: rotations, SMPL's layer and files, its joint sets, cameras, pictures of meshes."""
