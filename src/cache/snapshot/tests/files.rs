//! Which files are read, replaced or left alone.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// Files that are no snapshots are not removed, not overwritten, and not waited for.
#[test]
fn other_files_are_not_replaced() {
    let s = Fixture::new();
    s.keep(&KEY, EntryKind::Positive, USER);
    let path = s.dir.join("cache");
    let status = std::process::Command::new("mkfifo").arg(s.dir.join("pipe")).status().unwrap();
    assert!(status.success());
    fs::write(s.dir.join("secret"), "s3cret").unwrap();
    fs::write(s.dir.join("long"), "x".repeat(1_000)).unwrap();
    for name in ["secret", "long", "pipe"] {
        let _ = fs::remove_file(&path);
        let is_linked = name == "pipe";
        if is_linked {
            std::os::unix::fs::symlink(s.dir.join(name), &path).unwrap();
        } else {
            fs::copy(s.dir.join(name), &path).unwrap();
        }
        assert!(matches!(s.load().1, Err(LoadError::Damaged(Damage::Magic))), "{name}");
        for error in [s.cache.save(&s.snapshot(), s.now()).err(), s.snapshot().check_writable().err()] {
            assert!(error.is_some_and(|error| error.to_string().contains("left alone")), "{name}");
        }
        assert!(is_linked || fs::read(&path).unwrap() == fs::read(s.dir.join(name)).unwrap());
    }
}

/// What is purged after a start must not be there again after a crash.
#[test]
fn a_file_is_used_once() {
    let s = Fixture::new();
    s.keep(&KEY, EntryKind::Positive, USER);
    s.save();
    assert!(s.load().1.is_ok());
    assert!(matches!(s.load().1, Err(LoadError::NotFound)));
    assert_eq!(fs::read_dir(&s.dir).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn a_snapshot_is_private_and_replaces_the_old_one() {
    let s = Fixture::new();
    let snapshot = s.snapshot();
    s.keep(&KEY, EntryKind::Positive, USER);
    // What a crash or a power cut has left of an earlier one.
    for left in ["railgate cache 2\nand more", "railgate cache of old", ""] {
        fs::write(snapshot.temporary_path(), left).unwrap();
        fs::set_permissions(snapshot.temporary_path(), fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(snapshot.path(), left).unwrap();
        snapshot.check_writable().unwrap();
        fs::write(snapshot.temporary_path(), left).unwrap();
        assert_eq!(s.save(), 1);
        assert_eq!(fs::metadata(snapshot.path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!snapshot.temporary_path().exists());
        assert!(s.load().1.is_ok());
    }
}

/// Anything but an unfinished snapshot.
#[test]
fn other_files_under_the_temporary_name_are_not_replaced() {
    let s = Fixture::new();
    s.keep(&KEY, EntryKind::Positive, USER);
    let (snapshot, elsewhere) = (s.snapshot(), s.dir.join("elsewhere"));
    let part = snapshot.temporary_path();
    fs::write(&elsewhere, "railgate cache 2\nuntouched").unwrap();
    let run = |command: &str, argument: &Path| {
        assert!(std::process::Command::new(command).arg(argument).status().unwrap().success());
    };
    let is_root = rustix::process::geteuid().is_root();
    let put = |what: &str| match what {
        "a directory" => fs::create_dir(&part).unwrap(),
        "a symbolic link" => std::os::unix::fs::symlink(&elsewhere, &part).unwrap(),
        "a symbolic link " => std::os::unix::fs::symlink(s.dir.join("nowhere"), &part).unwrap(),
        "a socket" => drop(std::os::unix::net::UnixListener::bind(&part).unwrap()),
        "a named pipe" => run("mkfifo", &part),
        "other names too" => fs::hard_link(&elsewhere, &part).unwrap(),
        "another user" => {
            fs::copy(&elsewhere, &part).unwrap();
            std::os::unix::fs::chown(&part, Some(65_534), None).unwrap();
        }
        "a file that is no saved cache" => fs::write(&part, "railgate cach").unwrap(),
        _ => fs::write(&part, "notes").unwrap(),
    };
    for what in [
        "a directory",
        "a symbolic link",
        "a symbolic link ",
        "a socket",
        "a named pipe",
        "other names too",
        "another user",
        "a file that is no saved cache",
        "a file that is no saved cache ",
    ] {
        if what == "another user" && !is_root {
            continue;
        }
        put(what);
        let look = || {
            let there = fs::symlink_metadata(&part).unwrap();
            let text = there.is_file().then(|| fs::read(&part).unwrap());
            (there.file_type(), std::os::unix::fs::MetadataExt::ino(&there), text)
        };
        let before = look();
        for error in [s.cache.save(&snapshot, s.now()).err(), snapshot.check_writable().err()] {
            let error = error.unwrap().to_string();
            let expected = [part.to_str().unwrap(), what.trim_end(), "left alone: move it away"];
            assert!(expected.iter().all(|text| error.contains(text)), "{what}: {error}");
        }
        assert_eq!(look(), before, "{what}");
        assert_eq!(fs::read(&elsewhere).unwrap(), b"railgate cache 2\nuntouched", "{what}");
        assert!(!snapshot.path().exists());
        let _ = fs::remove_file(&part).or_else(|_| fs::remove_dir(&part));
    }
    assert_eq!(s.save(), 1);
}

#[test]
fn a_failed_save_is_an_error_and_leaves_no_file() {
    let s = Fixture::new();
    s.keep(&KEY, EntryKind::Positive, USER);
    let nowhere = sealed(s.dir.join("missing/cache"), "s3cret", "rails");
    assert!(s.cache.save(&nowhere, s.now()).is_err() && nowhere.check_writable().is_err());
    let occupied = sealed(s.dir.join("occupied"), "s3cret", "rails");
    fs::create_dir(occupied.path()).unwrap();
    assert!(s.cache.save(&occupied, s.now()).is_err());
    assert!(!occupied.temporary_path().exists());
    assert!(s.snapshot().check_writable().is_ok());
    assert_eq!(fs::read_dir(&s.dir).unwrap().count(), 1);
}

#[test]
fn a_foreign_file_is_not_trusted() {
    let s = Fixture::new();
    for (secret, upstream) in [("s3cret2", "rails"), ("s3cret", "rails2"), ("s3cre", "trails")] {
        s.cache.invalidate_all();
        s.keep(&KEY, EntryKind::Positive, USER);
        s.save();
        let (cache, loaded) =
            s.load_with(&sealed(s.dir.join("cache"), secret, upstream), &Lifetimes::default());
        assert!(matches!(loaded, Err(LoadError::Foreign)), "{loaded:?}");
        assert!(cache.lookup(&KEY, s.now().instant).is_none());
    }
    s.cache.invalidate_all();
    s.keep(&KEY, EntryKind::Positive, USER);
    s.save();
    let early = SnapshotTime { unix: s.now().unix.checked_sub(seconds(1)).unwrap(), ..s.now() };
    let loaded =
        Cache::new(&CacheSettings::default()).load(&s.snapshot(), early, &Lifetimes::default(), false);
    assert!(matches!(loaded, Err(LoadError::FromTheFuture)), "{loaded:?}");
}

/// Cut off anywhere, or with any bit flipped, none of it is loaded.
#[test]
fn a_damaged_file_is_not_trusted() {
    let s = Fixture::new();
    s.keep(&KEY, EntryKind::Positive, USER);
    s.keep(&Key::SshKey([9; 32]), EntryKind::Positive, "a row");
    s.save();
    let whole = fs::read(s.snapshot().path()).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(s.snapshot().path(), bytes).unwrap();
        let (cache, loaded) = s.load();
        assert_eq!(cache.lookup(&KEY, s.now().instant).is_none(), loaded.is_err());
        loaded.err()
    };
    assert!(refused(&whole).is_none());
    for length in 0..whole.len() {
        let why = refused(&whole[..length]);
        assert!(matches!(why, Some(LoadError::Damaged(_))), "{length}: {why:?}");
    }
    for at in 0..whole.len() {
        let mut turned = whole.clone();
        turned[at] ^= 1 << (at % 8);
        assert!(refused(&turned).is_some(), "{at}");
    }
    let mut longer = whole.clone();
    longer.push(0);
    assert!(matches!(refused(&longer), Some(LoadError::Damaged(Damage::Mac))));
    let newer = String::from_utf8_lossy(&whole[..15]).into_owned() + "1\n";
    let newer = [newer.as_bytes(), &whole[17..]].concat();
    assert!(matches!(refused(&newer), Some(LoadError::OtherVersion)));
    assert!(matches!(refused(b"something else altogether"), Some(LoadError::Damaged(Damage::Magic))));
}
