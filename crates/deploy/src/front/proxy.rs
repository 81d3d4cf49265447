//! One request through the front.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{Either, Empty, Full};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::backend::InFlight;
use super::body::{Answer, Outgoing, Through};
use super::headers;
use super::state::{Found, Front};

/// How long a program may take until the head of its answer.
const ANSWER_WAIT: Duration = Duration::from_mins(5);

/// Passes a request to the instance its host leads to.
pub(super) async fn pass(front: Arc<Front>, peer: SocketAddr, request: Request<Incoming>) -> Response<Answer> {
    let mut response = route(&front, peer, request).await;
    if front.leaving.load(Ordering::SeqCst) && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn route(front: &Arc<Front>, peer: SocketAddr, request: Request<Incoming>) -> Response<Answer> {
    let Some(host) = headers::host(&request) else {
        return text(StatusCode::BAD_REQUEST, "the request names no host, or several\n");
    };
    if request.method() == Method::CONNECT {
        return text(StatusCode::METHOD_NOT_ALLOWED, "this is not a forward proxy\n");
    }
    let flight = match front.find(&host) {
        Found::Instance(flight) => flight,
        Found::Unknown => {
            let known = format!(
                "no service is called {} here\n\nServices of this environment are <project>.{}.localhost; \
                 `adamant status` lists them.\n",
                shown(&host),
                front.environment,
            );
            return text(StatusCode::MISDIRECTED_REQUEST, &known);
        }
    };
    let protocol = headers::upgrade(request.headers());
    let (mut head, body) = request.into_parts();
    headers::forward(&mut head, &host, peer);
    match protocol {
        Some(protocol) => tunnel(front, head, body, protocol, flight).await,
        None => exchange(front, head, body, flight).await,
    }
}

/// An ordinary request. Without a body and with a method that may be repeated it can use a
/// connection that served before, and is tried once more if that one breaks before the answer.
async fn exchange(front: &Front, head: http::request::Parts, body: Incoming, flight: InFlight) -> Response<Answer> {
    let repeatable = body.is_end_stream()
        && matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE);
    if !repeatable {
        return match flight.backend().connect(&front.tasks).await {
            Ok(mut sender) => match send(&mut sender, Request::from_parts(head, Either::Right(body))).await {
                Ok(response) => through(response, flight, Some(sender)),
                Err(failed) => failed.answer(&flight),
            },
            Err(error) => unavailable(&flight, &error),
        };
    }
    let reused = flight.backend().reuse();
    let mut first = match reused {
        Some(sender) => sender,
        None => match flight.backend().connect(&front.tasks).await {
            Ok(sender) => sender,
            Err(error) => return unavailable(&flight, &error),
        },
    };
    let again = head.clone();
    match send(&mut first, Request::from_parts(head, Either::Left(Empty::new()))).await {
        Ok(response) => return through(response, flight, Some(first)),
        Err(failed @ Failed::Slow) => return failed.answer(&flight),
        Err(Failed::Broken(_)) => {}
    }
    match flight.backend().connect(&front.tasks).await {
        Ok(mut sender) => match send(&mut sender, Request::from_parts(again, Either::Left(Empty::new()))).await {
            Ok(response) => through(response, flight, Some(sender)),
            Err(failed) => failed.answer(&flight),
        },
        Err(error) => unavailable(&flight, &error),
    }
}

/// A request that changes the protocol: the two connections are joined when the program agrees.
async fn tunnel(
    front: &Front,
    mut head: http::request::Parts,
    body: Incoming,
    protocol: HeaderValue,
    flight: InFlight,
) -> Response<Answer> {
    let client = head.extensions.remove::<OnUpgrade>();
    headers::set_upgrade(&mut head.headers, protocol);
    let mut sender = match flight.backend().connect(&front.tasks).await {
        Ok(sender) => sender,
        Err(error) => return unavailable(&flight, &error),
    };
    let mut response = match send(&mut sender, Request::from_parts(head, Either::Right(body))).await {
        Ok(response) => response,
        Err(failed) => return failed.answer(&flight),
    };
    let Some(client) = client.filter(|_| response.status() == StatusCode::SWITCHING_PROTOCOLS) else {
        return through(response, flight, Some(sender));
    };
    let agreed = response.headers().get(header::UPGRADE).cloned();
    let program = hyper::upgrade::on(&mut response);
    let (cut, stopped) = (flight.backend().cut.clone(), front.stopped.clone());
    front.tasks.spawn(async move {
        // Counts as in flight until either side ends it or the time to drain is over.
        let _flight = flight;
        let joined = async {
            if let (Ok(client), Ok(program)) = (client.await, program.await) {
                let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(program)).await;
            }
        };
        tokio::select! {
            () = joined => {}
            () = cut.cancelled() => {}
            () = stopped.cancelled() => {}
        }
    });
    let (mut head, _) = response.into_parts();
    headers::strip(&mut head.headers);
    if let Some(agreed) = agreed {
        headers::set_upgrade(&mut head.headers, agreed);
    }
    Response::from_parts(head, Answer::Text(Full::default()))
}

/// Why there is no answer.
enum Failed {
    Slow,
    Broken(hyper::Error),
}

async fn send(sender: &mut SendRequest<Outgoing>, request: Request<Outgoing>) -> Result<Response<Incoming>, Failed> {
    match tokio::time::timeout(ANSWER_WAIT, sender.send_request(request)).await {
        Ok(result) => result.map_err(Failed::Broken),
        Err(_) => Err(Failed::Slow),
    }
}

impl Failed {
    fn answer(self, flight: &InFlight) -> Response<Answer> {
        let key = &flight.backend().key;
        match self {
            // Ours to say: the program has done nothing wrong.
            Self::Broken(error) if body_error(&error).is_some() => {
                let why = body_error(&error).map(ToString::to_string).unwrap_or_default();
                text(StatusCode::BAD_REQUEST, &format!("the request's body cannot be read: {why}\n"))
            }
            Self::Slow => text(StatusCode::GATEWAY_TIMEOUT, &format!("{key} did not answer within {ANSWER_WAIT:?}\n")),
            Self::Broken(error) => text(StatusCode::BAD_GATEWAY, &format!("{key} broke off: {error}\n")),
        }
    }
}

/// Why the body that a client sends cannot be read, if that is what ended an exchange: what is
/// read from a program fails with an error of the system instead.
fn body_error(error: &hyper::Error) -> Option<&hyper::Error> {
    std::error::Error::source(error).filter(|_| error.is_user())?.downcast_ref()
}

fn unavailable(flight: &InFlight, error: &std::io::Error) -> Response<Answer> {
    let words = format!("{} is not healthy: {error}\n\n`adamant status` shows why.\n", flight.backend().key);
    text(StatusCode::SERVICE_UNAVAILABLE, &words)
}

fn through(response: Response<Incoming>, flight: InFlight, sender: Option<SendRequest<Outgoing>>) -> Response<Answer> {
    let (mut head, body) = response.into_parts();
    headers::strip(&mut head.headers);
    head.version = http::Version::HTTP_11;
    Response::from_parts(head, Answer::Through(Through::new(body, flight, sender)))
}

fn text(status: StatusCode, words: &str) -> Response<Answer> {
    let mut response = Response::new(Answer::Text(Full::new(Bytes::copy_from_slice(words.as_bytes()))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn shown(host: &str) -> String {
    host.chars().filter(char::is_ascii_graphic).take(100).collect()
}
