//! TLS with the operator's certificate, which may be replaced while the server runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::error::Problem;
use crate::settings::TlsSettings;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// The certificate in force.
#[derive(Debug)]
pub(crate) struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    /// Reads certificate and key; relative paths are below `data`.
    pub(crate) fn open(settings: &TlsSettings, data: &Path) -> Result<Arc<Self>, Problem> {
        let (chain, key) = (data.join(&settings.certificate), data.join(&settings.key));
        let current = RwLock::new(Arc::new(read(&chain, &key)?));
        Ok(Arc::new(Self { chain, key, current }))
    }

    /// What connections are accepted with.
    pub(crate) fn config(self: &Arc<Self>) -> Arc<rustls::ServerConfig> {
        let mut config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }

    /// Reads the files again when they change or the process gets SIGHUP. Until they fit together, the
    /// certificate that was read last stays in force.
    pub(crate) async fn follow(&self, stop: impl Future<Output = ()>) {
        let mut hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).ok();
        let mut seen = self.changed();
        let mut tick = tokio::time::interval(LOOK);
        tokio::pin!(stop);
        loop {
            let told = async {
                match &mut hangup {
                    Some(signal) => drop(signal.recv().await),
                    None => std::future::pending().await,
                }
            };
            let force = tokio::select! {
                () = &mut stop => return,
                () = told => true,
                _ = tick.tick() => false,
            };
            let now = self.changed();
            if !force && now == seen {
                continue;
            }
            seen = now;
            match read(&self.chain, &self.key) {
                Ok(new) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                    tracing::info!(certificate = %self.chain.display(), "the certificate was read again");
                }
                Err(problem) => tracing::error!(%problem, "the certificate that was read before stays in force"),
            }
        }
    }

    fn changed(&self) -> [Option<SystemTime>; 2] {
        [&self.chain, &self.key].map(|path| std::fs::metadata(path).and_then(|found| found.modified()).ok())
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn read(certificate: &Path, key: &Path) -> Result<CertifiedKey, Problem> {
    let refuse = |path: &Path, cause: &dyn std::fmt::Display| {
        Problem::usage(format!("[tls] of server.toml: {} cannot be used", path.display()))
            .cause(cause)
            .hint("give a certificate with those it rests on, and its key, both in PEM")
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| refuse(certificate, &error))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| refuse(key, &error))?;
    if chain.is_empty() {
        return Err(refuse(certificate, &"it holds no certificate"));
    }
    CertifiedKey::from_der(chain, private, &rustls::crypto::ring::default_provider())
        .map_err(|error| refuse(key, &error))
}
