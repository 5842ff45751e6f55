//! The devices, driven as a guest would, and as a hostile guest would.

mod block;
mod entropy;
mod net;
mod transport;
mod vsock;
