//! The format of the file.
//!
//! ```text
//! railgate cache 2\n
//! owner             32 bytes: a MAC that only the same secret and upstream make
//! saved             8 bytes, little-endian: milliseconds since the Unix epoch
//! frame …           4 bytes, little-endian: its length; then a `Frame`, as postcard writes it
//! end               4 bytes: 0
//! MAC               32 bytes: HMAC-SHA256 of all of the above
//! ```

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::error::{Damage, LoadError};
use crate::cache::entry::Entry;
use crate::cache::headers::ReplayedHeaders;
use crate::cache::key::Key;
use crate::cache::lifetimes::AgeLimits;

const MAGIC: &[u8] = b"railgate cache ";
/// To be raised with any change below, and of [`Key`] or [`AgeLimits`]: postcard writes positions, not names.
const VERSION: &[u8] = b"2\n";
const MAC_LENGTH: usize = 32;

/// How much is read or written at one time.
const BUFFER_SIZE: usize = 256 * 1024;

#[derive(Deserialize, Serialize)]
pub(super) enum Frame<'a> {
    /// Headers that entries share. Entries refer to them by their number, from 0 on.
    #[serde(borrow)]
    Headers(Vec<(&'a str, &'a serde_bytes::Bytes)>),
    #[serde(borrow)]
    Entry(SavedEntry<'a>),
}

/// A positive entry; its age is that of the moment of saving.
#[derive(Deserialize, Serialize)]
pub(super) struct SavedEntry<'a> {
    pub(super) key: Key,
    pub(super) header_map: usize,
    pub(super) status: u16,
    #[serde(borrow)]
    pub(super) etag: Option<&'a serde_bytes::Bytes>,
    #[serde(borrow)]
    pub(super) body: &'a serde_bytes::Bytes,
    pub(super) age: Duration,
    pub(super) age_limits: AgeLimits,
    pub(super) is_marked_stale: bool,
    pub(super) hits: u32,
    pub(super) expires_at: u32,
    pub(super) subject_id: u64,
}

/// An error if there is something else than a snapshot, which must not be lost.
pub(super) fn check_replaceable(path: &Path) -> io::Result<()> {
    match existing_file(path)? {
        ExistingFile::None | ExistingFile::Snapshot(_) => Ok(()),
        ExistingFile::Other(what) => Err(not_replaced(path, what)),
    }
}

/// Makes a file that no other user may read. What a crash has left of an earlier one is removed; anything
/// else that has this name stays, and is an error.
pub(super) fn create(path: &Path) -> io::Result<File> {
    match existing_file(path)? {
        ExistingFile::None => {}
        ExistingFile::Snapshot(metadata) if metadata.uid() != rustix::process::geteuid().as_raw() => {
            return Err(not_replaced(path, "a file of another user"));
        }
        // An unfinished snapshot has one name until it is complete.
        ExistingFile::Snapshot(metadata) if metadata.nlink() > 1 => {
            return Err(not_replaced(path, "a file that has other names too (hard links)"));
        }
        ExistingFile::Snapshot(_) => fs::remove_file(path)?,
        ExistingFile::Other(what) => return Err(not_replaced(path, what)),
    }
    // Not through a link, nor into a file that was created there since.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    // At once, so that it is known as a snapshot wherever a crash ends it.
    let started = file.write_all(MAGIC).and_then(|()| file.rewind());
    if started.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(path);
    }
    started.map(|()| file)
}

/// The file that already has the name of the one to be written.
enum ExistingFile {
    None,
    /// A regular file that begins like a snapshot, or an empty one, which a power cut makes of that.
    Snapshot(fs::Metadata),
    /// Anything else, which is left alone.
    Other(&'static str),
}

/// Looks without following links, and without waiting for the other end of a pipe.
fn existing_file(path: &Path) -> io::Result<ExistingFile> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ExistingFile::None),
        metadata => metadata?,
    };
    let file_type = metadata.file_type();
    let what = match () {
        () if file_type.is_dir() => "a directory",
        () if file_type.is_symlink() => "a symbolic link",
        () if file_type.is_socket() => "a socket",
        () if file_type.is_fifo() => "a named pipe",
        () if !file_type.is_file() => "a device",
        () => "a file that is no saved cache",
    };
    if !file_type.is_file() {
        return Ok(ExistingFile::Other(what));
    }
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let Ok(flags) = i32::try_from(flags.bits()) else { return Ok(ExistingFile::Other(what)) };
    let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Ok(ExistingFile::Other("a file that may not be read"));
        }
        file => file?,
    };
    let (metadata, mut magic) = (file.metadata()?, [0; MAGIC.len()]);
    let is_snapshot = metadata.len() == 0 || file.read_exact(&mut magic).is_ok() && magic == MAGIC;
    let is_snapshot = metadata.is_file() && is_snapshot;
    Ok(if is_snapshot { ExistingFile::Snapshot(metadata) } else { ExistingFile::Other(what) })
}

fn not_replaced(path: &Path, what: &str) -> io::Error {
    let path = path.display();
    let message =
        format!("{path} is {what}, which is left alone: move it away, or name another cache.snapshot");
    io::Error::new(io::ErrorKind::AlreadyExists, message)
}

fn owner_mac(key: &hmac::Key) -> hmac::Tag {
    hmac::sign(key, b"whose")
}

/// Writes a file from its beginning to its end.
pub(super) struct SnapshotWriter {
    file: BufWriter<File>,
    mac: hmac::Context,
    /// By address, which is unique while the map is referenced here.
    header_maps: HashMap<*const ReplayedHeaders, (usize, Arc<ReplayedHeaders>)>,
    frame: Vec<u8>,
}

impl SnapshotWriter {
    pub(super) fn start(file: File, key: &hmac::Key, now: Duration) -> io::Result<Self> {
        let mut writer = Self {
            file: BufWriter::with_capacity(BUFFER_SIZE, file),
            mac: hmac::Context::with_key(key),
            header_maps: HashMap::new(),
            frame: Vec::new(),
        };
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        for part in [MAGIC, VERSION, owner_mac(key).as_ref(), &now.to_le_bytes()] {
            writer.write(part)?;
        }
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.mac.update(bytes);
        self.file.write_all(bytes)
    }

    fn write_frame(&mut self, frame: &Frame<'_>) -> io::Result<()> {
        let mut bytes = std::mem::take(&mut self.frame);
        bytes.clear();
        let bytes = postcard::to_extend(frame, bytes).map_err(io::Error::other)?;
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.write(&length.to_le_bytes())?;
        self.write(&bytes)?;
        self.frame = bytes;
        Ok(())
    }

    pub(super) fn write_entry(
        &mut self,
        key: &Key,
        (entry, age_limits): (&Entry, AgeLimits),
        now: Instant,
    ) -> io::Result<()> {
        let next = self.header_maps.len();
        let shared = || (next, Arc::clone(&entry.headers));
        let header_map = self.header_maps.entry(Arc::as_ptr(&entry.headers)).or_insert_with(shared).0;
        if header_map == next {
            let headers = entry.headers.in_saved_order();
            self.write_frame(&Frame::Headers(
                headers
                    .map(|(name, value)| (name.as_str(), serde_bytes::Bytes::new(value.as_bytes())))
                    .collect(),
            ))?;
        }
        let (etag, body) = entry.etag_and_body();
        self.write_frame(&Frame::Entry(SavedEntry {
            key: key.clone(),
            header_map,
            status: entry.status.as_u16(),
            etag: Some(serde_bytes::Bytes::new(&etag)).filter(|etag| !etag.is_empty()),
            body: serde_bytes::Bytes::new(&body),
            age: entry.age(now),
            age_limits,
            is_marked_stale: entry.is_marked_stale(),
            hits: entry.hits(),
            expires_at: entry.expires_at(),
            subject_id: entry.subject_id().unwrap_or_default(),
        }))
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.write(&0_u32.to_le_bytes())?;
        let mac = self.mac.clone().sign();
        self.file.write_all(mac.as_ref())?;
        self.file.flush()
    }
}

/// Reads a file whose MAC is right.
pub(super) struct SnapshotReader {
    file: BufReader<File>,
    saved_at: Duration,
    frame: Vec<u8>,
}

impl SnapshotReader {
    /// Opens the file and removes it.
    pub(super) fn open(path: &Path, key: &hmac::Key) -> Result<Self, LoadError> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(LoadError::NotFound),
            // To open a pipe would wait for its other end.
            metadata => check_is_file(&metadata?)?,
        }
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut file = BufReader::with_capacity(BUFFER_SIZE, file);
        let mut start = [0; MAGIC.len() + VERSION.len()];
        read(&mut file, &mut start).map_err(|_| Damage::Magic)?;
        let version = start.strip_prefix(MAGIC).ok_or(Damage::Magic)?;
        remove(path)?;
        if version != VERSION {
            return Err(LoadError::OtherVersion);
        }
        let (mut owner, mut saved_at) = ([0; MAC_LENGTH], [0; 8]);
        read(&mut file, &mut owner)?;
        read(&mut file, &mut saved_at)?;
        if verify_slices_are_equal(&owner, owner_mac(key).as_ref()).is_err() {
            return Err(LoadError::Foreign);
        }
        verify(&mut file, key, length)?;
        let first_frame = start.len() + owner.len() + saved_at.len();
        file.seek(io::SeekFrom::Start(first_frame as u64))?;
        let saved_at = Duration::from_millis(u64::from_le_bytes(saved_at));
        Ok(Self { file, saved_at, frame: Vec::new() })
    }

    /// Since the Unix epoch.
    pub(super) fn saved_at(&self) -> Duration {
        self.saved_at
    }

    /// The next frame, or `None` at the end.
    pub(super) fn read_frame(&mut self) -> Result<Option<Frame<'_>>, LoadError> {
        let mut length = [0; 4];
        read(&mut self.file, &mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        self.frame.resize(length, 0);
        read(&mut self.file, &mut self.frame)?;
        let frame = (length > 0).then(|| postcard::from_bytes(&self.frame)).transpose();
        Ok(frame.map_err(|_| Damage::Frame)?)
    }
}

fn check_is_file(metadata: &fs::Metadata) -> Result<(), Damage> {
    if metadata.is_file() { Ok(()) } else { Err(Damage::Magic) }
}

/// For good: after a power cut it must not be there again.
fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// The headers of a [`Frame::Headers`].
pub(super) fn header_map(headers: &[(&str, &serde_bytes::Bytes)]) -> Result<HeaderMap, Damage> {
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| Damage::Frame)?;
        map.append(name, HeaderValue::from_bytes(value).map_err(|_| Damage::Frame)?);
    }
    Ok(map)
}

/// A file that ends too early is damaged, not unreadable.
fn read(file: &mut BufReader<File>, bytes: &mut [u8]) -> Result<(), LoadError> {
    file.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Damage::Truncated.into(),
        _ => error.into(),
    })
}

/// Reads a file of this length from its beginning, and compares the MAC at its end.
fn verify(file: &mut BufReader<File>, key: &hmac::Key, length: u64) -> Result<(), LoadError> {
    file.rewind()?;
    let mut mac = hmac::Context::with_key(key);
    let mut remaining = length.checked_sub(MAC_LENGTH as u64).ok_or(Damage::Truncated)?;
    let mut buffer = vec![0; BUFFER_SIZE];
    while remaining > 0 {
        let size = usize::try_from(remaining).unwrap_or(BUFFER_SIZE).min(BUFFER_SIZE);
        let part = buffer.get_mut(..size).unwrap_or_default();
        read(file, part)?;
        mac.update(part);
        remaining -= size as u64;
    }
    let mut expected = [0; MAC_LENGTH];
    read(file, &mut expected)?;
    verify_slices_are_equal(&expected, mac.sign().as_ref()).map_err(|_| Damage::Mac.into())
}
