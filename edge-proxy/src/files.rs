//! Identity and snapshot from files, without a control plane.
