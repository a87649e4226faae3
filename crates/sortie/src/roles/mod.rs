//! The long-running commands: each starts one or more roles, says when they serve, and drains them on a signal.

mod gateway;
mod hub;
mod up;

use std::fs::File;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use serde::Serialize;
use sortie_connectors::files::{FilesConfig, FilesLimits, FilesService, files};
use sortie_gateway::{CallBody, LocalUpstream, OpenLocal, Upstream};

use crate::error::Failure;

pub(crate) use gateway::gateway;
pub(crate) use hub::hub;
pub(crate) use up::up;

/// Keeps a second process out of a data directory; the operating system frees it with the process.
struct DataLock(#[expect(dead_code, reason = "held for its lock")] File);

impl DataLock {
    fn take(dir: &Path) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::failed(format!("the data directory {}: {error}", dir.display()));
        let mut private = std::fs::DirBuilder::new();
        private.recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let file = File::options().create(true).append(true).open(dir.join("lock")).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(std::fs::TryLockError::WouldBlock) => Err(Failure::failed(format!(
                "another sortie process uses the data directory {}: stop it, or choose another with --data-dir",
                dir.display()
            ))),
            Err(std::fs::TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

/// A ready file: there while, and only while, the command serves.
struct ReadyFile(Option<PathBuf>);

impl ReadyFile {
    /// Removes what an earlier process may have left, so that nobody takes it for ours. To be called with the lock on
    /// the data directory: without it, a second process would remove the file of the one that serves.
    fn prepare(path: Option<PathBuf>) -> Result<Self, Failure> {
        if let Some(path) = &path {
            match std::fs::remove_file(path) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Failure::usage(format!("the ready file {}: {error}", path.display()))),
            }
        }
        Ok(Self(path))
    }

    fn write<T: Serialize>(&self, ready: &T) -> Result<(), Failure> {
        let Some(path) = &self.0 else { return Ok(()) };
        let text = serde_json::to_vec_pretty(ready).map_err(Failure::failed)?;
        sortie_tls::write_private(path, &text)
            .map_err(|error| Failure::failed(format!("the ready file {}: {error}", path.display())))
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The built-in MCP server over a directory, as an upstream of the gateway.
struct Files(FilesService);

impl LocalUpstream for Files {
    fn call(&self, request: Request<CallBody>) -> BoxFuture<'static, Response<CallBody>> {
        let service = self.0.clone();
        Box::pin(async move { service.call(request).await.map(|body| body.map_err(|never| match never {}).boxed()) })
    }
}

/// Opens the built-in servers that routes ask for.
fn local_upstreams() -> OpenLocal {
    Arc::new(|_, route| {
        let (Upstream::Files, Some(root)) = (&route.upstream, &route.root) else {
            return Err("it is not part of this program".to_owned());
        };
        let service = files(FilesConfig { root: root.clone(), limits: FilesLimits::default() });
        Ok(Arc::new(Files(service.map_err(|error| error.to_string())?)))
    })
}

/// Waits for SIGTERM or Ctrl-C.
async fn stop_signal() -> Result<(), Failure> {
    let stop = sortie_runtime::stop_signal().await.map_err(|error| Failure::failed(format!("no signals: {error}")))?;
    tracing::info!(?stop, "stopping");
    Ok(())
}
