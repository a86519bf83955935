//! What was probably meant by a name that is not known.

use super::key::KeyRead;

/// Letters of a name that may be changed, added, dropped or swapped for a suggestion.
const MAX_TYPOS: usize = 2;

/// The known name that differs by a slip of the keyboard.
pub(super) fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let distances = known.map(|known| (strsim::damerau_levenshtein(known, name), known));
    distances
        .min_by_key(|(distance, _)| *distance)
        .filter(|(typos, _)| *typos <= MAX_TYPOS)
        .map(|(_, known)| known)
}

/// The error about a key of a section with these `known` keys; `all` keys of the configuration.
pub(super) fn message(name: &str, known: &[&'static str], all: &[KeyRead]) -> String {
    if let Some(known) = nearest(name, known.iter().copied()) {
        return format!("unknown key; did you mean {known:?}?");
    }
    let elsewhere: Vec<_> = all.iter().filter(|key| key.name == name).map(KeyRead::path).collect();
    let known = known.join(", ");
    match elsewhere.as_slice() {
        [] => format!("unknown key; known here: {known}"),
        [path] => format!("unknown key; known here: {known}; there is {path}"),
        paths => format!("unknown key; known here: {known}; there are {}", paths.join(", ")),
    }
}

/// The names that resemble one that is not known, best first: slips of the keyboard, or with the same last part.
pub(super) fn similar<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Vec<&'n str> {
    const MAX: usize = 5;
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let own_last = last(name);
    let mut found: Vec<_> = known
        .filter_map(|known| {
            let typos = strsim::damerau_levenshtein(known, name);
            let last_typos = strsim::damerau_levenshtein(&last(known), &own_last);
            let is_part = !own_last.is_empty() && last(known).contains(&own_last);
            let rank = if typos <= MAX_TYPOS { typos } else { 10 + last_typos * 10 + typos };
            (typos <= MAX_TYPOS || last_typos <= 1 || is_part).then_some((rank, known))
        })
        .collect();
    found.sort_unstable();
    found.into_iter().take(MAX).map(|(_, known)| known).collect()
}
