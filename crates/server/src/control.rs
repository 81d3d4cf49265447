//! The control socket: gives short-lived tokens to processes of the same user on this machine.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use adamant_api::{Control, ControlAnswer};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::auth::{Auth, LINK_LIFE, TOKEN_LIFE};

/// Listens at `run/control.sock` of the data directory, mode 0600.
pub(crate) fn listen(data: &Path) -> std::io::Result<UnixListener> {
    listen_at(data, "control.sock")
}

/// Listens at `run/<name>`, for the owner alone.
pub(crate) fn listen_at(data: &Path, name: &str) -> std::io::Result<UnixListener> {
    use std::os::fd::AsRawFd as _;
    let run = data.join("run");
    std::fs::create_dir_all(&run)?;
    std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o700))?;
    let path = run.join(name);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // A socket address holds 107 bytes; a path through the directory's descriptor always fits.
    let dir = std::fs::File::open(&run)?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers until dropped. `url` is the base URL of the server.
pub(crate) async fn serve(listener: UnixListener, auth: Arc<Auth>, url: String) {
    let slots = Arc::new(tokio::sync::Semaphore::new(32));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (auth, url) = (Arc::clone(&auth), url.clone());
                tokio::spawn(async move {
                    let _slot = slot;
                    let answered = tokio::time::timeout(Duration::from_secs(10), answer(stream, &auth, &url)).await;
                    if let Ok(Err(error)) = answered {
                        tracing::warn!(%error, "control socket");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "control socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, auth: &Auth, url: &str) -> std::io::Result<()> {
    let peer = stream.peer_cred()?;
    let own = rustix::process::geteuid().as_raw();
    // The mode already keeps others out; a descriptor passed around does not get past this.
    if peer.uid() != own && peer.uid() != 0 {
        return Err(std::io::Error::other(format!("uid {} is not the owner of this server", peer.uid())));
    }
    let actor = user_name(peer.uid()).unwrap_or_else(|| format!("uid {}", peer.uid()));
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(4096)).read_line(&mut line).await?;
    let request: Control = serde_json::from_str(&line)?;
    let answer = match request {
        Control::Token => {
            ControlAnswer { url: url.to_owned(), secret: auth.token(&actor), expires_s: TOKEN_LIFE.as_secs() }
        }
        Control::Login => {
            let secret = format!("{url}/login?once={}", auth.link(&actor));
            ControlAnswer { url: url.to_owned(), secret, expires_s: LINK_LIFE.as_secs() }
        }
    };
    let mut bytes = serde_json::to_vec(&answer)?;
    bytes.push(b'\n');
    write.write_all(&bytes).await
}

/// The login name of a user id, for the record.
pub(crate) fn user_name(uid: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid.to_string() && is_own(name)).then(|| name.to_owned())
    })
}

/// Whether a login name cannot be taken for somebody who is no user of this machine.
fn is_own(name: &str) -> bool {
    name != "anonymous" && !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}
