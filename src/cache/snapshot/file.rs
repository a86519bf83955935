//! The file: what is in it, and in which order.
//!
//! ```text
//! railgate cache 2\n
//! whose             32 bytes: a MAC that only the same secret and upstream make
//! saved             8 bytes, little-endian: milliseconds since the Unix epoch
//! frame …           4 bytes, little-endian: its length; then a `Frame`, as postcard writes it
//! end               4 bytes: 0
//! seal              32 bytes: HMAC-SHA256 of all of the above
//! ```

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use super::{Damage, NotLoaded};
use crate::cache::ages::Ages;
use crate::cache::entry::Entry;
use crate::cache::key::Key;

const MAGIC: &[u8] = b"railgate cache ";
/// To be raised with whatever changes below, and with [`Key`] or [`Ages`]: postcard writes positions, not names.
const VERSION: &[u8] = b"2\n";
const MAC: usize = 32;

/// How much is read or written at one time.
const BUFFER: usize = 256 * 1024;

#[derive(Deserialize, Serialize)]
pub(super) enum Frame<'a> {
    /// Headers that entries share, which name them by their number, from 0 on.
    #[serde(borrow)]
    Head(Vec<(&'a str, &'a serde_bytes::Bytes)>),
    #[serde(borrow)]
    Entry(Record<'a>),
}

/// A positive entry; its age is that of the moment of saving.
#[derive(Deserialize, Serialize)]
pub(in crate::cache) struct Record<'a> {
    pub(in crate::cache) key: Key,
    pub(in crate::cache) head: usize,
    pub(in crate::cache) status: u16,
    #[serde(borrow)]
    pub(in crate::cache) etag: Option<&'a serde_bytes::Bytes>,
    #[serde(borrow)]
    pub(in crate::cache) body: &'a serde_bytes::Bytes,
    pub(in crate::cache) age: Duration,
    pub(in crate::cache) ages: Ages,
    pub(in crate::cache) is_softened: bool,
    pub(in crate::cache) hits: u32,
    pub(in crate::cache) expires: u32,
    pub(in crate::cache) subject: u64,
}

/// An error if there is something else than a saved cache, which must not be lost.
pub(super) fn must_be_free(path: &Path) -> io::Result<()> {
    match what_is_at(path)? {
        There::Nothing | There::Saved(_) => Ok(()),
        There::Else(what) => Err(left_alone(path, what)),
    }
}

/// Makes a file that no other user may read. What a crash has left of an earlier one goes; anything
/// else that has this name stays, and is an error.
pub(super) fn create(path: &Path) -> io::Result<File> {
    match what_is_at(path)? {
        There::Nothing => {}
        There::Saved(there) if there.uid() != rustix::process::geteuid().as_raw() => {
            return Err(left_alone(path, "a file of another user"));
        }
        // One that was begun has one name until it is complete.
        There::Saved(there) if there.nlink() > 1 => {
            return Err(left_alone(path, "a file that has other names too (hard links)"));
        }
        There::Saved(_) => fs::remove_file(path)?,
        There::Else(what) => return Err(left_alone(path, what)),
    }
    // Not through a link, nor into something that has come there since.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    // At once, so that it is known as one of these wherever a crash ends it.
    let begun = file.write_all(MAGIC).and_then(|()| file.rewind());
    if begun.is_err() {
        // What failed first is the news.
        let _ = fs::remove_file(path);
    }
    begun.map(|()| file)
}

/// What has the name of a file that is to be written.
enum There {
    Nothing,
    /// A regular file that begins like a saved cache, or an empty one, which a power cut makes of that.
    Saved(fs::Metadata),
    /// Something that is none of the gateway's business.
    Else(&'static str),
}

/// Looks without following links, and without waiting for the other end of a pipe.
fn what_is_at(path: &Path) -> io::Result<There> {
    let there = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(There::Nothing),
        there => there?,
    };
    let kind = there.file_type();
    let what = match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_symlink() => "a symbolic link",
        () if kind.is_socket() => "a socket",
        () if kind.is_fifo() => "a named pipe",
        () if !kind.is_file() => "a device",
        () => "a file that is no saved cache",
    };
    if !kind.is_file() {
        return Ok(There::Else(what));
    }
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let Ok(flags) = i32::try_from(flags.bits()) else { return Ok(There::Else(what)) };
    let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Ok(There::Else("a file that may not be read"));
        }
        file => file?,
    };
    let (there, mut begin) = (file.metadata()?, [0; MAGIC.len()]);
    let is_saved = there.len() == 0 || file.read_exact(&mut begin).is_ok() && begin == MAGIC;
    Ok(if there.is_file() && is_saved { There::Saved(there) } else { There::Else(what) })
}

fn left_alone(path: &Path, what: &str) -> io::Error {
    let path = path.display();
    let told = format!("{path} is {what}, which is left alone: move it away, or name another cache.snapshot");
    io::Error::new(io::ErrorKind::AlreadyExists, told)
}

fn whose(seal: &hmac::Key) -> hmac::Tag {
    hmac::sign(seal, b"whose")
}

/// Writes a file from its beginning to its end.
pub(super) struct Writer {
    file: BufWriter<File>,
    seal: hmac::Context,
    /// By address, which is theirs for as long as they are kept here.
    heads: HashMap<*const HeaderMap, (usize, Arc<HeaderMap>)>,
    frame: Vec<u8>,
}

impl Writer {
    pub(super) fn begin(file: File, key: &hmac::Key, now: Duration) -> io::Result<Self> {
        let mut writer = Self {
            file: BufWriter::with_capacity(BUFFER, file),
            seal: hmac::Context::with_key(key),
            heads: HashMap::new(),
            frame: Vec::new(),
        };
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        for part in [MAGIC, VERSION, whose(key).as_ref(), &now.to_le_bytes()] {
            writer.write(part)?;
        }
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.seal.update(bytes);
        self.file.write_all(bytes)
    }

    fn frame(&mut self, frame: &Frame<'_>) -> io::Result<()> {
        let mut bytes = std::mem::take(&mut self.frame);
        bytes.clear();
        let bytes = postcard::to_extend(frame, bytes).map_err(io::Error::other)?;
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.write(&length.to_le_bytes())?;
        self.write(&bytes)?;
        self.frame = bytes;
        Ok(())
    }

    pub(super) fn put(&mut self, key: &Key, entry: &Entry, now: Instant) -> io::Result<()> {
        let next = self.heads.len();
        let shared = || (next, Arc::clone(&entry.headers));
        let head = self.heads.entry(Arc::as_ptr(&entry.headers)).or_insert_with(shared).0;
        if head == next {
            let headers = entry.headers.iter();
            self.frame(&Frame::Head(
                headers
                    .map(|(name, value)| (name.as_str(), serde_bytes::Bytes::new(value.as_bytes())))
                    .collect(),
            ))?;
        }
        self.frame(&Frame::Entry(Record {
            key: key.clone(),
            head,
            status: entry.status.as_u16(),
            etag: entry.etag.as_ref().map(|etag| serde_bytes::Bytes::new(etag.as_bytes())),
            body: serde_bytes::Bytes::new(entry.body()),
            age: entry.age(now),
            ages: entry.ages,
            is_softened: entry.is_softened(),
            hits: entry.hits(),
            expires: entry.expires(),
            subject: entry.subject().unwrap_or_default(),
        }))
    }

    pub(super) fn end(mut self) -> io::Result<()> {
        self.write(&0_u32.to_le_bytes())?;
        let seal = self.seal.clone().sign();
        self.file.write_all(seal.as_ref())?;
        self.file.flush()
    }
}

/// Reads a file whose seal is right.
pub(super) struct Reader {
    file: BufReader<File>,
    saved: Duration,
    frame: Vec<u8>,
}

impl Reader {
    /// Opens the file and removes it.
    pub(super) fn open(path: &Path, key: &hmac::Key) -> Result<Self, NotLoaded> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(NotLoaded::None),
            // To open a pipe would wait for its other end.
            there => must_be_a_file(&there?)?,
        }
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut file = BufReader::with_capacity(BUFFER, file);
        let mut begin = [0; MAGIC.len() + VERSION.len()];
        read(&mut file, &mut begin).map_err(|_| Damage::Begin)?;
        let version = begin.strip_prefix(MAGIC).ok_or(Damage::Begin)?;
        remove(path)?;
        if version != VERSION {
            return Err(NotLoaded::OtherVersion);
        }
        let (mut is_mine, mut saved) = ([0; MAC], [0; 8]);
        read(&mut file, &mut is_mine)?;
        read(&mut file, &mut saved)?;
        if !bool::from(is_mine.ct_eq(whose(key).as_ref())) {
            return Err(NotLoaded::Foreign);
        }
        verify(&mut file, key, length)?;
        let at = begin.len() + is_mine.len() + saved.len();
        file.seek(io::SeekFrom::Start(at as u64))?;
        let saved = Duration::from_millis(u64::from_le_bytes(saved));
        Ok(Self { file, saved, frame: Vec::new() })
    }

    /// When it was saved, since the Unix epoch.
    pub(super) fn saved(&self) -> Duration {
        self.saved
    }

    /// The next frame, or `None` at the end.
    pub(super) fn frame(&mut self) -> Result<Option<Frame<'_>>, NotLoaded> {
        let mut length = [0; 4];
        read(&mut self.file, &mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        self.frame.resize(length, 0);
        read(&mut self.file, &mut self.frame)?;
        let frame = (length > 0).then(|| postcard::from_bytes(&self.frame)).transpose();
        Ok(frame.map_err(|_| Damage::Frame)?)
    }
}

fn must_be_a_file(there: &fs::Metadata) -> Result<(), Damage> {
    if there.is_file() { Ok(()) } else { Err(Damage::Begin) }
}

/// For good: after a power cut it must not be there again.
fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// The headers of a [`Frame::Head`].
pub(super) fn map(headers: &[(&str, &serde_bytes::Bytes)]) -> Result<HeaderMap, Damage> {
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| Damage::Frame)?;
        map.append(name, HeaderValue::from_bytes(value).map_err(|_| Damage::Frame)?);
    }
    Ok(map)
}

/// A file that ends too early is damaged, not unreadable.
fn read(file: &mut BufReader<File>, bytes: &mut [u8]) -> Result<(), NotLoaded> {
    file.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Damage::End.into(),
        _ => error.into(),
    })
}

/// Reads a file of this length from its beginning to its seal, which has to fit.
fn verify(file: &mut BufReader<File>, key: &hmac::Key, length: u64) -> Result<(), NotLoaded> {
    file.rewind()?;
    let mut seal = hmac::Context::with_key(key);
    let mut left = length.checked_sub(MAC as u64).ok_or(Damage::End)?;
    let mut buffer = vec![0; BUFFER];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
        let part = buffer.get_mut(..most).unwrap_or_default();
        read(file, part)?;
        seal.update(part);
        left -= most as u64;
    }
    let mut said = [0; MAC];
    read(file, &mut said)?;
    if bool::from(said.ct_eq(seal.sign().as_ref())) { Ok(()) } else { Err(Damage::Seal.into()) }
}
