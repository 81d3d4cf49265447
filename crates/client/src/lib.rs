//! Talks to a server: control socket, tokens, API
