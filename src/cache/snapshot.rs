//! What is kept, saved when the gateway stops and loaded when it starts, so that a restart is not met
//! by everybody's questions at once, and known keys stay known if Rails is down just then.
//!
//! A file says who may log in, so it is believed only if it is sealed: by a key that is made of the
//! secret of GitLab Shell and of where Rails is. And it is used once: it is removed before it is read,
//! since what is purged later must not come back after a crash. What is loaded is as old as it is, the
//! time in between included. Negative answers are not saved: they live for seconds.

pub(super) mod file;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;

use self::file::{Frame, Reader, Writer};
use super::{Cache, Entry, Key, Lifetimes, Sign};
use crate::secret::ShellSecret;

/// A place for a saved cache, and by what a file there is known as one's own.
#[derive(Clone, Debug)]
pub struct Snapshot {
    path: PathBuf,
    seal: hmac::Key,
}

/// When it is: for ages, and for what outlives the process.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// On the monotonic clock.
    pub instant: Instant,
    /// Since the Unix epoch.
    pub unix: Duration,
}

/// What was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Entries that are good for something.
    pub entries: usize,
    /// Entries that are good for nothing any more, or for which there is no room.
    pub left_out: usize,
    /// How long ago they were saved.
    pub saved: Duration,
}

/// Why nothing was loaded.
#[derive(Debug, thiserror::Error)]
pub enum NotLoaded {
    /// There is no file.
    #[error("there is none")]
    None,
    /// It cannot be read, or not be removed.
    #[error("it cannot be used: {0}")]
    Unreadable(#[from] io::Error),
    /// It is no snapshot, or one that was changed or cut off.
    #[error("it is damaged: {0}")]
    Damaged(#[from] Damage),
    /// A version that is not known here.
    #[error("it is of another version of railgate")]
    OtherVersion,
    /// Sealed with another secret, or for another Rails.
    #[error("it was saved with another secret, or in front of another upstream.url")]
    Foreign,
    /// By its own account it was saved after now.
    #[error("it is from the future: the clock was set back")]
    FromTheFuture,
}

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It is something else.
    #[error("it does not begin like a snapshot")]
    Begin,
    /// It was cut off.
    #[error("it ends too early")]
    End,
    /// Something in it is not what was written.
    #[error("its seal does not fit what is in it")]
    Seal,
    /// The seal fits, but what is in it makes no sense.
    #[error("its seal fits, but not its content")]
    Frame,
}

impl Snapshot {
    /// A file at `path` of a gateway that has this secret, in front of this Rails.
    pub fn new(path: PathBuf, secret: &ShellSecret, upstream: &str) -> Self {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret.as_hmac_key());
        let seal = hmac::sign(&secret, format!("railgate cache\0{upstream}").as_bytes());
        Self { path, seal: hmac::Key::new(hmac::HMAC_SHA256, seal.as_ref()) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a file could be written.
    pub fn try_to_write(&self) -> io::Result<()> {
        file::must_be_free(&self.path)?;
        drop(file::create(&self.part())?);
        std::fs::remove_file(self.part())
    }

    /// Beside the file, so that it takes its place at one stroke.
    fn part(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".part");
        name.into()
    }
}

impl Cache {
    /// Writes what is good for something to a file, which takes the place of the one that may be there
    /// once it is complete. Says how many entries there were.
    ///
    /// The file is not forced onto the disk: after a power cut it is not sealed, and not believed.
    pub fn save(&self, to: &Snapshot, now: Now) -> io::Result<usize> {
        file::must_be_free(&to.path)?;
        let part = to.part();
        // What is there already, and is none of ours, is not ours to remove.
        let created = file::create(&part)?;
        let saved = Writer::begin(created, &to.seal, now.unix)
            .and_then(|file| self.write(file, now.instant))
            .and_then(|count| std::fs::rename(&part, &to.path).map(|()| count));
        if saved.is_err() {
            // What failed first is the news.
            let _ = std::fs::remove_file(&part);
        }
        saved
    }

    fn write(&self, mut file: Writer, now: Instant) -> io::Result<usize> {
        let mut count = 0;
        for (key, entry) in &self.positive {
            // The state of the instance is out of date within a second.
            if *key != Key::Instance && self.phase(&entry, now).is_some() {
                file.put(&key, &entry, now)?;
                count += 1;
            }
        }
        file.end()?;
        Ok(count)
    }

    /// Reads what was saved, and removes the file. To be called before anything is served: whoever drops
    /// something must not be overtaken by it. With `is_stale`, nothing of it is fresh, since somebody may
    /// have said meanwhile what is wrong of it.
    pub fn load(
        &self,
        from: &Snapshot,
        now: Now,
        lifetimes: &Lifetimes,
        is_stale: bool,
    ) -> Result<Loaded, NotLoaded> {
        let loaded = self.read(from, now, lifetimes, is_stale);
        if loaded.is_err() {
            // All of it or nothing.
            self.invalidate_all();
        }
        loaded
    }

    fn read(
        &self,
        from: &Snapshot,
        now: Now,
        lifetimes: &Lifetimes,
        is_stale: bool,
    ) -> Result<Loaded, NotLoaded> {
        let mut file = Reader::open(&from.path, &from.seal)?;
        let saved = now.unix.checked_sub(file.saved()).ok_or(NotLoaded::FromTheFuture)?;
        let mut loaded = Loaded { saved, ..Loaded::default() };
        let mut heads = Vec::new();
        while let Some(frame) = file.frame()? {
            let record = match frame {
                Frame::Head(headers) => {
                    heads.push(self.heads.of(&file::map(&headers)?));
                    continue;
                }
                Frame::Entry(record) => record,
            };
            let head = heads.get(record.head).ok_or(Damage::Frame)?;
            let ages = lifetimes.of(record.key.caching(), Sign::Positive);
            // Longer ago than this clock goes back: too old for anything.
            let asked = now.instant.checked_sub(record.age.saturating_add(saved));
            let entry = asked.and_then(|asked| {
                let entry = Entry::restored(&record, head, (asked, ages), self.generation())?;
                if is_stale {
                    entry.soften();
                }
                let is_good = self.phase(&entry, now.instant).is_some();
                (is_good && !ages.is_none() && self.has_room_for(&record.key, &entry)).then_some(entry)
            });
            let Some(entry) = entry else {
                loaded.left_out += 1;
                continue;
            };
            self.put(record.key, Arc::new(entry));
            loaded.entries += 1;
        }
        Ok(loaded)
    }
}

#[cfg(test)]
mod tests;
