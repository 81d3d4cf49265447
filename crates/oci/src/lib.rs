//! OCI names, descriptors, manifests and errors
