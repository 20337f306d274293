"""Results in a browser: photos or video with meshes and skeletons in 3D, offline."""
