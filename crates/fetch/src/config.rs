//! Where inputs come from, and how much of them is too much.

use std::net::IpAddr;
use std::time::Duration;

/// All settings of a [`crate::Fetcher`]. [`Config::default`] is right on an ordinary network.
#[derive(Debug, Clone)]
pub struct Config {
    /// Debian packages.
    pub debian: DebianConfig,
    /// Base of crate downloads: `<base>/<name>/<name>-<version>.crate`.
    pub crates_base: String,
    /// Proxies, as the administrator gave them.
    pub proxies: Proxies,
    /// Hosts (names or addresses, without port) that may have private addresses.
    pub allowed_hosts: Vec<String>,
    /// Addresses of our own control interfaces, refused like private ones.
    pub control_addresses: Vec<IpAddr>,
    /// Bounds.
    pub limits: Limits,
}

/// Where Debian packages come from.
#[derive(Debug, Clone)]
pub struct DebianConfig {
    /// Name of the release, part of the names of inputs: `bookworm`.
    pub release: String,
    /// Mirrors with their suites, the first in which a version is found wins.
    pub archives: Vec<Archive>,
    /// Further mirror bases asked only for packages that the archives no longer have.
    pub snapshots: Vec<String>,
    /// Component, `main`.
    pub component: String,
    /// Debian architecture, `amd64`.
    pub arch: String,
    /// OpenPGP public keys, binary or armoured, any of which must have signed each suite.
    pub keyrings: Vec<Vec<u8>>,
}

/// A mirror.
#[derive(Debug, Clone)]
pub struct Archive {
    /// Address without a slash at the end.
    pub base: String,
    /// Suites in it.
    pub suites: Vec<String>,
}

/// Proxies by scheme of the address asked for.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    /// For `http://`.
    pub http: Option<String>,
    /// For `https://`.
    pub https: Option<String>,
    /// Hosts reached without proxy: names, domains and CIDR ranges, separated by commas.
    pub exempt: Option<String>,
}

/// Bounds on what is fetched.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest single input, in bytes, where no lock says its size.
    pub input_bytes: u64,
    /// Largest package index, compressed, in bytes.
    pub index_bytes: u64,
    /// Largest package index, unpacked, in bytes.
    pub index_unpacked_bytes: u64,
    /// Downloads at a time.
    pub parallel: usize,
    /// Attempts per address.
    pub attempts: u32,
    /// Wait before the second attempt; doubles each time.
    pub backoff: Duration,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Longest silence on a connection.
    pub idle_timeout: Duration,
    /// Longest single download.
    pub total_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            input_bytes: 2 << 30,
            index_bytes: 64 << 20,
            index_unpacked_bytes: 512 << 20,
            parallel: 8,
            attempts: 4,
            backoff: Duration::from_millis(250),
            connect_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_mins(1),
            total_timeout: Duration::from_mins(30),
        }
    }
}

impl DebianConfig {
    /// The stable release Debian 12 with updates and security fixes, from the default mirror,
    /// with the archive's embedded keys.
    pub fn bookworm(arch: &str) -> Self {
        let archive = |base: &str, suites: &[&str]| Archive {
            base: base.to_owned(),
            suites: suites.iter().map(|&suite| suite.to_owned()).collect(),
        };
        Self {
            release: "bookworm".to_owned(),
            archives: vec![
                archive("http://deb.debian.org/debian", &["bookworm", "bookworm-updates"]),
                archive("http://deb.debian.org/debian-security", &["bookworm-security"]),
            ],
            snapshots: Vec::new(),
            component: "main".to_owned(),
            arch: arch.to_owned(),
            keyrings: crate::debian::archive_keys(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            debian: DebianConfig::bookworm("amd64"),
            crates_base: "https://static.crates.io/crates".to_owned(),
            proxies: Proxies::default(),
            allowed_hosts: Vec::new(),
            control_addresses: Vec::new(),
            limits: Limits::default(),
        }
    }
}
