//! The only part of Isthmus that knows Kubernetes.
//!
//! It will hold three roles of one binary: *injector* (mutating webhook),
//! *controller* (Services, EndpointSlices and Pods into the registry, imported
//! services back out) and *init* (traffic redirection in a pod). None of them
//! is here yet: this crate fixes the place and the dependency rule. Nothing
//! else in the workspace may link a Kubernetes client.
