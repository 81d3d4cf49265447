//! A data directory with a target, and images to deploy.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use adamant_deploy::{Applied, Local, Options, Outcome};
use adamant_digest::{Digest, Verified};
use adamant_release::{Configuration, Document as _, Policy, Release, Rollout, Service};
use adamant_sandbox::Sandbox;
use adamant_store::{BlobStore, FsBlobs};

pub(crate) const HOST: &str = "shop.dev.localhost";

pub(crate) struct World {
    pub(crate) data: tempfile::TempDir,
    pub(crate) local: Local,
    pub(crate) blobs: Arc<dyn BlobStore>,
}

/// The executable that plays `adamant`.
pub(crate) fn helper() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().and_then(Path::parent).unwrap().join("examples/deploy-helper");
    assert!(path.exists(), "{} is missing: run all tests of the package, that builds it", path.display());
    path
}

/// The service of the tests, or why it cannot run here.
pub(crate) fn app() -> Result<&'static Vec<u8>, String> {
    static APP: OnceLock<Result<Vec<u8>, String>> = OnceLock::new();
    let build = || {
        let host = Sandbox::new(helper()).capabilities().map_err(|e| e.to_string())?;
        host.user_namespaces?;
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/app.c");
        let out = dir.path().join("app");
        let made = Command::new("cc").args(["-static", "-O1", "-pthread", "-o"]).arg(&out).arg(&source).output();
        let made = made.map_err(|e| format!("no C compiler: {e}"))?;
        if !made.status.success() {
            return Err(format!("no static C program: {}", String::from_utf8_lossy(&made.stderr)));
        }
        std::fs::read(out).map_err(|e| e.to_string())
    };
    APP.get_or_init(build).as_ref().map_err(Clone::clone)
}

/// Ends a test by name where the host forbids it.
#[macro_export]
macro_rules! world {
    ($name:literal) => {
        match $crate::support::app() {
            Ok(_) => $crate::support::World::new(),
            Err(reason) => {
                eprintln!("skipped: {}: {reason}", $name);
                return;
            }
        }
    };
}

impl World {
    pub(crate) fn new() -> Self {
        // A deep directory: socket paths must not depend on its length.
        let data = tempfile::Builder::new().prefix("adamant-deploy-").tempdir().unwrap();
        let deep = data.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        std::fs::create_dir(deep.join("blobs")).unwrap();
        std::fs::write(deep.join("trust.json"), "{}").unwrap();
        let blobs: Arc<dyn BlobStore> = Arc::new(FsBlobs::open(&deep.join("blobs")).unwrap());
        let local = Self::open(&deep, helper(), blobs.clone());
        Self { data, local, blobs }
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.data.path().join("d".repeat(120))
    }

    pub(crate) fn open(dir: &Path, exe: PathBuf, blobs: Arc<dyn BlobStore>) -> Local {
        let mut options = Options::new(dir, exe);
        options.ready = Duration::from_secs(20);
        options.drain = Duration::from_secs(10);
        Local::open(options, blobs).unwrap()
    }

    /// Keeps an image of one layer with the service and `files`; its manifest's digest.
    pub(crate) async fn image(&self, gzip: bool, files: &[(&str, &str)]) -> Digest {
        let app = app().unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |path: &str, mode: u32, bytes: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(mode);
            tar.append_data(&mut header, path, bytes).unwrap();
        };
        add("bin/app", 0o755, app);
        for (path, text) in files {
            add(path, 0o644, text.as_bytes());
        }
        let mut layer = tar.into_inner().unwrap();
        if gzip {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut encoder, &layer).unwrap();
            layer = encoder.finish().unwrap();
        }
        let kind = if gzip { "tar+gzip" } else { "tar" };
        self.manifest(layer, &format!("application/vnd.oci.image.layer.v1.{kind}")).await
    }

    pub(crate) async fn manifest(&self, layer: Vec<u8>, media_type: &str) -> Digest {
        let config =
            r#"{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/bin/app"],"Env":["NAME=image"]}}"#;
        let layer = self.keep(layer).await;
        let config = self.keep(config.into()).await;
        let manifest = format!(
            "{{\"schemaVersion\":2,\"config\":{{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\
             \"digest\":\"{config}\",\"size\":1}},\"layers\":[{{\"mediaType\":\"{media_type}\",\"digest\":\"{layer}\",\"size\":1}}]}}"
        );
        self.keep(manifest.into()).await
    }

    pub(crate) async fn keep(&self, bytes: Vec<u8>) -> Digest {
        let blob = Verified::hash(bytes);
        self.blobs.put(&blob).await.unwrap();
        blob.digest()
    }

    /// Deploys to dev as `NAME=name` and expects it to be healthy.
    pub(crate) async fn deploy(&self, generation: u64, image: Digest, name: &str) -> u64 {
        let outcome = self.local.apply(&applied(generation, image, &[("NAME", name)])).await.unwrap();
        match outcome {
            Outcome::Healthy { ms, .. } => ms,
            Outcome::Failed { reason } => panic!("{reason}"),
        }
    }

    pub(crate) async fn port(&self) -> u16 {
        self.local.port("dev").await.unwrap().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Fronts and instances would outlive the test: that is what they are for.
        let local = self.local.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(local.down()).unwrap();
        })
        .join()
        .unwrap();
    }
}

/// A deployment of one service called web.
pub(crate) fn applied(generation: u64, image: Digest, env: &[(&str, &str)]) -> Applied {
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let configuration = Configuration { env }.encode().unwrap();
    let release = Release {
        version: 1,
        project: "shop".into(),
        number: 1,
        commit: "a".repeat(40),
        tree: Digest::of(b"tree"),
        lock: Digest::of(b"lock"),
        artifacts: vec![adamant_attest::predicate::ArtifactRef {
            name: "web".into(),
            platform: "linux/amd64".into(),
            digest: image,
        }],
        services: vec![Service { artifact: "web".into(), port: Some(8080), health: Some("/health".into()) }],
    };
    let rollout: Rollout = release.rollout("dev", configuration.digest(), Policy::default().digest().unwrap()).unwrap();
    let rollout = rollout.encode().unwrap();
    Applied {
        generation,
        evidence: format!("trusted {}", rollout.digest()),
        rollout: rollout.into_bytes(),
        configuration: configuration.into_bytes(),
        port: None,
    }
}

/// Waits until `check` holds.
pub(crate) async fn until(what: &str, mut check: impl AsyncFnMut() -> bool) {
    for _ in 0..2000 {
        if check().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}
