//! Deliveries: one bounded request to an address that the operator wrote, and the status it got.

use std::time::Duration;

use reqwest::{Client, Url};

use crate::config::{Limits, Proxies};
use crate::error::FetchError;
use crate::guard::shown;
use crate::http::{chain, guarded, network};

/// Most of an answer's body that is read, so that the connection can be used again.
const MAX_ANSWER: usize = 64 * 1024;

/// Posts to one address. Its host may be private, for the operator named it; redirects are not
/// followed, so nothing else is ever asked.
#[derive(Debug, Clone)]
pub struct Poster {
    client: Client,
    url: Url,
}

impl Poster {
    /// A poster with connections of its own, whose requests take `timeout` at the longest, answers
    /// included. Asks nobody yet.
    pub fn new(url: &str, proxies: &Proxies, timeout: Duration) -> Result<Self, FetchError> {
        let bad = |cause: &str| FetchError::Config(cause.to_owned());
        let url: Url = url.parse().map_err(|_| bad("its `url` is not an address"))?;
        let host = url.host_str().filter(|_| matches!(url.scheme(), "http" | "https"));
        let host = host.ok_or_else(|| bad("its `url` is not `https://…` or `http://…`"))?.to_owned();
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad("its `url` has credentials in it: deliveries are signed instead"));
        }
        let limits =
            Limits { connect_timeout: timeout, idle_timeout: timeout, total_timeout: timeout, ..Limits::default() };
        let (builder, _) = guarded(proxies, vec![host], &[], &limits)?;
        let builder = builder.redirect(reqwest::redirect::Policy::none()).pool_max_idle_per_host(1);
        let client = builder.build().map_err(|error| FetchError::Config(chain(&error)))?;
        Ok(Self { client, url })
    }

    /// Sends `body` once; gives the status of the answer, whose body is of no interest.
    pub async fn post(&self, headers: &[(&'static str, &str)], body: Vec<u8>) -> Result<u16, FetchError> {
        let request = self.client.post(self.url.clone()).body(body);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let mut response = request.send().await.map_err(|error| network(&self.url, &error))?;
        let mut read = 0;
        // The status is here: how the body ends changes nothing.
        while let Ok(Some(chunk)) = response.chunk().await {
            read += chunk.len();
            if read > MAX_ANSWER {
                break;
            }
        }
        Ok(response.status().as_u16())
    }

    /// The address, for people: without its query.
    pub fn address(&self) -> String {
        shown(&self.url)
    }
}
