//! Users and groups by name or number.

use nix::unistd::{Group, User};

/// The number of a user.
pub(super) fn user(name: &str) -> Result<u32, String> {
    find("user", name, |name| Ok(User::from_name(name)?.map(|user| user.uid.as_raw())))
}

/// The number of a group.
pub(super) fn group(name: &str) -> Result<u32, String> {
    find("group", name, |name| Ok(Group::from_name(name)?.map(|group| group.gid.as_raw())))
}

fn find(
    what: &str,
    name: &str,
    look_up: impl FnOnce(&str) -> Result<Option<u32>, nix::Error>,
) -> Result<u32, String> {
    // A name cannot begin with a digit everywhere, and -1 stands for no change.
    if name.bytes().all(|byte| byte.is_ascii_digit())
        && let Ok(id) = name.parse::<u32>()
        && id != u32::MAX
    {
        return Ok(id);
    }
    match look_up(name) {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(format!("this system has no {what} {name:?}; create it, or write its number")),
        Err(error) => Err(format!("the {what} {name:?} cannot be looked up: {error}; write its number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_have_names_and_numbers() {
        assert_eq!((user("root"), group("root")), (Ok(0), Ok(0)));
        assert_eq!((user("998"), group("0")), (Ok(998), Ok(0)));
        for bad in ["no-such-account", "", "4294967295", "99999999999", "-1", "a\0b"] {
            assert!(user(bad).is_err() && group(bad).is_err(), "{bad}");
        }
    }
}
