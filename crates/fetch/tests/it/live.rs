//! Against the real mirror. Whatever keeps it from being reached skips the test by name.

use std::sync::Arc;
use std::time::Instant;

use adamant_fetch::debian::{Base, Candidate, Index, resolve};
use adamant_fetch::{Config, FetchError, Fetcher, LockFetchError};

use crate::store::Memory;

fn closure<'i>(index: &'i Index, request: &str, base: Base) -> Vec<&'i Candidate> {
    let request: Vec<_> = request.split(' ').map(|name| name.parse().unwrap()).collect();
    let started = Instant::now();
    let found = resolve(index, &request, base).unwrap_or_else(|error| panic!("{request:?}: {error}"));
    let bytes: u64 = found.iter().map(|package| package.size).sum();
    let names: Vec<String> = request.iter().map(ToString::to_string).collect();
    eprintln!("{}: {} packages, {} MB, {:?}", names.join(" "), found.len(), bytes / 1_000_000, started.elapsed());
    found
}

#[tokio::test]
async fn closures_of_the_real_mirror() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = Config::default();
    config.limits.connect_timeout = std::time::Duration::from_secs(5);
    config.limits.attempts = 2;
    let store = Memory::default();
    let fetcher = Fetcher::new(config, Arc::new(store)).unwrap();
    let started = Instant::now();
    let index = match fetcher.debian_index().await {
        Ok(index) => index,
        Err(LockFetchError::Fetch(
            error @ (FetchError::Network { .. } | FetchError::Status { .. } | FetchError::Refused(_)),
        )) => {
            eprintln!("skipped: closures_of_the_real_mirror: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    eprintln!("index: {} packages in {:?}", index.len(), started.elapsed());
    for suite in &index.suites {
        eprintln!("{}: {} until {:?}", suite.name, suite.date, suite.valid_until);
    }
    let started = Instant::now();
    fetcher.debian_index().await.unwrap();
    eprintln!("index again: {:?}", started.elapsed());

    let gcc = closure(&index, "gcc libc6-dev make", Base::Essential);
    for name in ["gcc-12", "binutils", "dash", "coreutils", "libc6", "perl-base", "linux-libc-dev"] {
        assert!(gcc.iter().any(|package| package.name == name), "{name} is missing");
    }
    let rust = closure(&index, "cargo-web gcc libc6-dev rustc-web", Base::Essential);
    assert!(
        rust.iter().any(|package| package.name == "libstd-rust-web-dev" || package.name.starts_with("libstd-rust"))
    );
    assert!(closure(&index, "g++", Base::Essential).iter().any(|package| package.name == "libstdc++-12-dev"));
    let libc = closure(&index, "libc6", Base::Without);
    let names: Vec<&str> = libc.iter().map(|package| package.name.as_str()).collect();
    assert_eq!(names, ["gcc-12-base", "libc6", "libgcc-s1"]);
}
