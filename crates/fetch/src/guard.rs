//! The address guard: builds are asked for by pushed text, so that text must not be able to make
//! the server talk to itself, to its neighbours or to a cloud's metadata service.
//!
//! Checked: the address as written, every redirect, and every address a name resolves to; the
//! connection is made to an address that passed. Behind a proxy the proxy resolves names, and
//! only the address as written can be checked here.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Why an address is not connected to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not `http` or `https`, or with credentials, or no host.
    #[error("{0} is not an http or https address without credentials")]
    Address(String),
    /// The host is, or resolves to, an address that is not public.
    #[error(
        "{} is {kind} and not fetched from: take a public address, or let an administrator start the server with `adamant up --allow-private {host}`",
        located(host, *address)
    )]
    NotPublic {
        /// Host as written.
        host: String,
        /// Where it is.
        address: IpAddr,
        /// Loopback, private, …
        kind: &'static str,
    },
    /// From https to http.
    #[error("{from} redirects to {to} without encryption")]
    Downgrade {
        /// Before.
        from: String,
        /// After.
        to: String,
    },
    /// Too many redirects.
    #[error("{0} redirects more than {MAX_REDIRECTS} times")]
    Redirects(String),
}

/// Most redirects followed.
pub(crate) const MAX_REDIRECTS: usize = 5;

/// A host with its address, once if they are the same.
fn located(host: &str, address: IpAddr) -> String {
    if plain(host).parse() == Ok(address) { address.to_string() } else { format!("{host}, at {address},") }
}

/// Which addresses may be connected to.
#[derive(Debug, Clone)]
pub struct Guard {
    allowed: Arc<BTreeSet<String>>,
    control: Arc<BTreeSet<IpAddr>>,
}

impl Guard {
    /// `allowed`: hosts exempt from the check; `control`: addresses refused although public.
    pub fn new(allowed: impl IntoIterator<Item = String>, control: impl IntoIterator<Item = IpAddr>) -> Self {
        let allowed = allowed.into_iter().map(|host| plain(&host)).collect();
        Self { allowed: Arc::new(allowed), control: Arc::new(control.into_iter().collect()) }
    }

    /// Checks an address as written.
    pub fn check_url(&self, url: &Url) -> Result<(), Refused> {
        let bad = || Refused::Address(shown(url));
        if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some() {
            return Err(bad());
        }
        let host = plain(url.host_str().ok_or_else(bad)?);
        match host.parse::<IpAddr>() {
            Ok(address) => self.check_address(&host, address),
            Err(_) => Ok(()),
        }
    }

    /// Checks an address `host` resolved to.
    pub fn check_address(&self, host: &str, address: IpAddr) -> Result<(), Refused> {
        if self.allowed.contains(&plain(host)) {
            return Ok(());
        }
        let kind = if self.control.contains(&address) { Some("a control address") } else { not_public(address) };
        kind.map_or(Ok(()), |kind| Err(Refused::NotPublic { host: host.to_owned(), address, kind }))
    }

    /// The policy for redirects.
    pub(crate) fn redirects(&self) -> reqwest::redirect::Policy {
        let guard = self.clone();
        reqwest::redirect::Policy::custom(move |attempt| {
            let from = attempt.previous().last().map(shown).unwrap_or_default();
            let downgrade =
                attempt.previous().iter().any(|url| url.scheme() == "https") && attempt.url().scheme() == "http";
            let refused = if attempt.previous().len() > MAX_REDIRECTS {
                Some(Refused::Redirects(from))
            } else if downgrade {
                Some(Refused::Downgrade { from, to: shown(attempt.url()) })
            } else {
                guard.check_url(attempt.url()).err()
            };
            match refused {
                Some(refused) => attempt.error(refused),
                None => attempt.follow(),
            }
        })
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.take(64).collect();
            let mut refused = None;
            let mut fine = Vec::new();
            for address in found {
                match guard.check_address(&host, address.ip()) {
                    Ok(()) => fine.push(address),
                    Err(error) => refused = Some(error),
                }
            }
            // One private address among public ones is how rebinding looks: refuse them all.
            match refused {
                Some(refused) => Err(refused.into()),
                None => Ok(Box::new(fine.into_iter()) as Addrs),
            }
        })
    }
}

/// An address for messages, without credentials and query.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Fails only where there can be no credentials.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

/// A host as compared: lower case, no brackets, no dot at the end.
fn plain(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase()
}

/// What kind of non-public address it is, by the IANA special-purpose registries. The ranges
/// for documentation are not in it: nothing is routed there.
pub fn not_public(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) => not_public_v4(v4),
        IpAddr::V6(v6) => not_public_v6(v6),
    }
}

fn not_public_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        [0, ..] => Some("unspecified"),
        [127, ..] => Some("loopback"),
        [10, ..] | [192, 168, ..] | [172, 16..=31, ..] => Some("private"),
        [100, 64..=127, ..] => Some("carrier-grade private"),
        [169, 254, ..] => Some("link-local"),
        [192, 0, 0, _] => Some("reserved for protocols"),
        [198, 18 | 19, ..] => Some("reserved for benchmarks"),
        [224..=239, ..] => Some("multicast"),
        [240..=255, ..] => Some("reserved"),
        _ => None,
    }
}

fn not_public_v6(address: Ipv6Addr) -> Option<&'static str> {
    if let Some(v4) = address.to_ipv4_mapped() {
        return not_public_v4(v4);
    }
    let tail = |a: u16, b: u16| {
        let [a, b] = [a.to_be_bytes(), b.to_be_bytes()];
        Ipv4Addr::new(a[0], a[1], b[0], b[1])
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("unspecified"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("loopback"),
        [0, 0, 0, 0, 0, 0, ..] => Some("reserved"),
        // An IPv4 address translated or tunnelled is as public as that address.
        [0x64, 0xff9b, 0, 0, 0, 0, a, b] | [0x2002, a, b, ..] => not_public_v4(tail(a, b)),
        [0x100, 0, 0, 0, ..] => Some("a discard address"),
        [0x2001, 0, ..] => Some("tunnelled"),
        [0x64, 0xff9b, ..] | [0xfc00..=0xfdff, ..] => Some("private"),
        [0xfe80..=0xfebf, ..] => Some("link-local"),
        [0xfec0..=0xfeff, ..] => Some("site-local"),
        [0xff00..=0xffff, ..] => Some("multicast"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for refused in [
            "0.0.0.0",
            "127.0.0.1",
            "127.9.9.9",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.169.254",
            "192.0.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "100::1",
        ] {
            assert!(not_public(refused.parse().unwrap()).is_some(), "{refused}");
        }
        for fine in
            ["1.1.1.1", "172.32.0.1", "100.128.0.1", "192.0.1.1", "2606:4700::1", "::ffff:1.1.1.1", "64:ff9b::101:101"]
        {
            assert_eq!(not_public(fine.parse().unwrap()), None, "{fine}");
        }
    }

    #[test]
    fn urls() {
        let guard = Guard::new(["Mirror.Lan".to_owned(), "[::1]".to_owned()], ["8.8.8.8".parse().unwrap()]);
        let check = |url: &str| guard.check_url(&url.parse().unwrap());
        assert!(check("http://example.org/x").is_ok());
        assert!(check("http://[::1]:80/").is_ok());
        for refused in [
            "ftp://example.org/",
            "http://u@example.org/",
            "http://127.0.0.1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://[::ffff:127.0.0.1]/",
            "http://8.8.8.8/",
        ] {
            assert!(check(refused).is_err(), "{refused}");
        }
        let private = "10.0.0.1".parse().unwrap();
        assert!(guard.check_address("mirror.lan.", private).is_ok());
        let refused = guard.check_address("evil.example", private).unwrap_err().to_string();
        assert_eq!(
            refused,
            "evil.example, at 10.0.0.1, is private and not fetched from: take a public address, or let an administrator start the server with `adamant up --allow-private evil.example`"
        );
    }
}
