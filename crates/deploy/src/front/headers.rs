//! Which headers pass.

use std::net::SocketAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Uri};

/// Headers that belong to one connection, RFC 9110 §7.6.1, and what the front answers itself.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The host a request is for: lower case, without port and final dot.
pub(super) fn host<B>(request: &Request<B>) -> Option<String> {
    let named = request.headers().get_all(header::HOST);
    let mut named = named.iter();
    let first = named.next();
    if named.next().is_some() {
        return None;
    }
    let text = match request.uri().authority() {
        Some(authority) => authority.as_str(),
        None => first?.to_str().ok()?,
    };
    let name = text.rsplit_once(':').map_or(
        text,
        |(name, port)| {
            if port.bytes().all(|b| b.is_ascii_digit()) { name } else { text }
        },
    );
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    (!name.is_empty() && name.len() <= 253).then_some(name)
}

/// The protocol a request wants to change to, if it does.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let wants = tokens(headers).any(|token| token.eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| wants).cloned()
}

fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Removes what belongs to one connection.
pub(super) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers).filter_map(|token| token.parse().ok()).collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Puts an upgrade back in.
pub(super) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

/// Turns a client's request head into the one for the instance.
pub(super) fn forward(head: &mut http::request::Parts, host: &str, peer: SocketAddr) {
    strip(&mut head.headers);
    // The front has answered it already, when it reads the body.
    head.headers.remove(header::EXPECT);
    if let Some(authority) = head.uri.authority()
        && let Ok(value) = HeaderValue::from_str(authority.as_str())
    {
        head.headers.insert(header::HOST, value);
    }
    let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    // `OPTIONS *` stays what it is; absolute targets become paths.
    if !(head.method == Method::OPTIONS && path == "*") {
        head.uri = Uri::from(path);
    }
    // Set, not appended: who talks to a front is not trusted to name others.
    head.headers.remove("forwarded");
    if let Ok(value) = HeaderValue::from_str(&peer.ip().to_string()) {
        head.headers.insert("x-forwarded-for", value);
    }
    let host = head.headers.get(header::HOST).cloned().or_else(|| HeaderValue::from_str(host).ok());
    if let Some(value) = host {
        head.headers.insert("x-forwarded-host", value);
    }
    head.headers.insert("x-forwarded-proto", HeaderValue::from_static("http"));
    head.version = http::Version::HTTP_11;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder().uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn hosts() {
        let of =
            |uri: &str, hosts: &[&str]| host(&request(uri, &hosts.iter().map(|h| ("host", *h)).collect::<Vec<_>>()));
        assert_eq!(of("/", &["Shop.Dev.localhost:7000"]).unwrap(), "shop.dev.localhost");
        assert_eq!(of("/", &["shop.dev.localhost."]).unwrap(), "shop.dev.localhost");
        assert_eq!(of("http://a.dev.localhost/x", &["b"]).unwrap(), "a.dev.localhost");
        assert_eq!(of("/", &["a", "b"]), None);
        assert_eq!(of("/", &[""]), None);
        assert_eq!(of("/", &[]), None);
    }

    #[test]
    fn what_belongs_to_one_connection_is_left_out() {
        let request = request(
            "http://a.dev.localhost:7/x?y",
            &[
                ("host", "b"),
                ("connection", "close, X-Secret, upgrade"),
                ("x-secret", "1"),
                ("upgrade", "websocket"),
                ("transfer-encoding", "chunked"),
                ("x-forwarded-for", "6.6.6.6"),
                ("accept", "*/*"),
            ],
        );
        assert_eq!(upgrade(request.headers()).unwrap(), "websocket");
        let (mut head, ()) = request.into_parts();
        forward(&mut head, "a.dev.localhost", "127.0.0.1:5".parse().unwrap());
        let mut names: Vec<_> = head.headers.iter().map(|(k, v)| format!("{k}: {}", v.to_str().unwrap())).collect();
        names.sort();
        assert_eq!(
            names,
            [
                "accept: */*",
                "host: a.dev.localhost:7",
                "x-forwarded-for: 127.0.0.1",
                "x-forwarded-host: a.dev.localhost:7",
                "x-forwarded-proto: http"
            ]
        );
        assert_eq!(head.uri, "/x?y");
    }
}
