//! Downloads that go on where they were cut.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Client, Response, StatusCode};
use ring::digest::{Context, SHA256};
use url::Url;
use vm_agent_schemas::ids::Digest;

use super::{OnProgress, Progress};
use crate::folder::at;
use crate::hold::blocking;

/// How long a server may be silent.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// How often in a row a connection may be cut without anything having come.
const CUTS_MAX: u32 = 5;

/// The pause before it is tried again.
const PAUSE: Duration = Duration::from_millis(200);

/// Why a download did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The server can't be reached, or cuts the connection again and again.
    #[error("`{url}` can't be downloaded; what has come is kept, and the next attempt goes on from there")]
    Cut {
        /// Where it is.
        url: Url,
        /// What happened last.
        source: reqwest::Error,
    },
    /// The server refuses.
    #[error("`{url}` can't be downloaded: the server answers {status}")]
    Refused {
        /// Where it is.
        url: Url,
        /// The answer.
        status: StatusCode,
    },
    /// It is not what it should be.
    #[error("`{url}` is another than it should be: its SHA-256 is {found}, and {expected} was asked for")]
    Changed {
        /// Where it is.
        url: Url,
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// The disk of this host fails.
    #[error("`{url}` can't be kept")]
    Io {
        /// Where it is.
        url: Url,
        /// Why.
        source: io::Error,
    },
}

/// Downloads to a file, from its end on, and compares it with the checksum. One that is another is deleted.
pub(super) async fn download(
    url: &Url,
    sha256: &Digest,
    part: &Path,
    on: &OnProgress<'_>,
) -> Result<(), DownloadError> {
    let kept = |source| DownloadError::Io { url: url.clone(), source };
    let client = client().map_err(|source| DownloadError::Cut { url: url.clone(), source })?;
    let mut file = OpenOptions::new().append(true).create(true).open(part).map_err(at(part)).map_err(kept)?;
    let mut cuts = 0;
    loop {
        let before = length(&file).map_err(kept)?;
        match fetch(&client, url, &mut file, on).await {
            Ok(()) => break,
            Err(Failure::Cut(source)) => {
                cuts = if length(&file).map_err(kept)? > before { 0 } else { cuts + 1 };
                if cuts == CUTS_MAX {
                    return Err(DownloadError::Cut { url: url.clone(), source: source.without_url() });
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(Failure::Refused(status)) => return Err(DownloadError::Refused { url: url.clone(), status }),
            Err(Failure::Io(source)) => return Err(kept(at(part)(source))),
        }
    }
    on(Progress::Checks);
    let path = part.to_owned();
    let found = blocking(move || digest_of(&path)).await.map_err(kept)?;
    if found != *sha256 {
        fs::remove_file(part).map_err(kept)?;
        return Err(DownloadError::Changed { url: url.clone(), expected: sha256.clone(), found });
    }
    Ok(())
}

enum Failure {
    Cut(reqwest::Error),
    Refused(StatusCode),
    Io(io::Error),
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        Self::Cut(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Takes what is missing, as far as one connection brings it.
async fn fetch(client: &Client, url: &Url, file: &mut File, on: &OnProgress<'_>) -> Result<(), Failure> {
    let mut here = length(file)?;
    let mut request = client.get(url.clone());
    if here > 0 {
        request = request.header(RANGE, format!("bytes={here}-"));
    }
    let mut response = request.send().await?;
    match response.status() {
        StatusCode::PARTIAL_CONTENT if begins_at(&response) == Some(here) => {}
        // There is nothing after what is here. The checksum tells whether that is all.
        StatusCode::RANGE_NOT_SATISFIABLE => return Ok(()),
        // From its beginning, then.
        StatusCode::OK | StatusCode::PARTIAL_CONTENT if here > 0 => {
            file.set_len(0)?;
            here = 0;
            if response.status() == StatusCode::PARTIAL_CONTENT {
                response = client.get(url.clone()).send().await?.error_for_status()?;
            }
        }
        StatusCode::OK => {}
        status => return Err(Failure::Refused(status)),
    }
    let of = response.content_length().map(|rest| here + rest);
    while let Some(bytes) = response.chunk().await? {
        // Short, and into the system's memory.
        file.write_all(&bytes)?;
        here += bytes.len() as u64;
        on(Progress::Downloaded { bytes: here, of });
    }
    Ok(())
}

/// Where a part begins: `bytes 100-199/200`.
fn begins_at(response: &Response) -> Option<u64> {
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

fn length(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.len())
}

fn client() -> Result<Client, reqwest::Error> {
    // It fails where it was done before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().connect_timeout(SILENCE_LIMIT).read_timeout(SILENCE_LIMIT).build()
}

/// The SHA-256 of a file's content.
pub(super) fn digest_of(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let (mut context, mut bytes) = (Context::new(&SHA256), vec![0; 1024 * 1024]);
    loop {
        match file.read(&mut bytes)? {
            0 => return Ok(Digest::of_sha256(&context.finish())),
            count => context.update(&bytes[..count]),
        }
    }
}
