//! Talks to a server: control socket, tokens, HTTP interface.
//!
//! Plain HTTP/1.1 to the address the control socket names; the token comes from that socket,
//! lives minutes and is never written anywhere.

mod control;
mod request;

pub use control::{Server, connect, login_link};
pub use request::ClientError;
