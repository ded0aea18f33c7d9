//! From the application into the mesh.
