//! Bodies on their way back to the client.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{Either, Empty, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::SendRequest;

use super::backend::InFlight;

/// What instances are sent.
pub(super) type Outgoing = Either<Empty<Bytes>, Incoming>;

/// What clients get: a text of the front itself, or the instance's body with what it holds open.
pub(super) enum Answer {
    Text(Full<Bytes>),
    Through(Through),
}

/// A body that counts as in flight until it was read or dropped, and then gives its connection
/// back.
pub(super) struct Through {
    inner: Incoming,
    flight: InFlight,
    sender: Option<SendRequest<Outgoing>>,
    done: bool,
}

impl Through {
    pub(super) fn new(inner: Incoming, flight: InFlight, sender: Option<SendRequest<Outgoing>>) -> Self {
        let done = inner.is_end_stream();
        Self { inner, flight, sender, done }
    }
}

impl Drop for Through {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take().filter(|_| self.done || self.inner.is_end_stream()) {
            self.flight.give_back(sender);
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Self::Text(text) => Pin::new(text).poll_frame(context).map_err(|never| match never {}),
            Self::Through(through) => {
                let frame = Pin::new(&mut through.inner).poll_frame(context);
                through.done |= matches!(frame, Poll::Ready(None));
                frame
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text) => text.is_end_stream(),
            Self::Through(through) => through.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => text.size_hint(),
            Self::Through(through) => through.inner.size_hint(),
        }
    }
}
