//! Reads values from environment variables.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
};

use super::{ConfigError, Given, Key, Origin};

const PREFIX: &str = "FDTRACKER_";

/// Variables that Kubernetes sets in every container of a pod if there is a service with the
/// agent's name.
const OF_KUBERNETES: [&str; 2] = ["FDTRACKER_SERVICE_", "FDTRACKER_PORT"];

/// Returns the variable of a flag: `FDTRACKER_WEB_LISTEN_ADDRESS` for `web.listen-address`.
#[must_use]
pub fn variable(name: &str) -> String {
    format!("{PREFIX}{}", name.replace(['.', '-'], "_").to_uppercase())
}

/// Returns a variable's value. An empty one counts as none, because service managers can't always
/// leave one out.
pub(super) fn value(variables: &[(OsString, OsString)], name: &str) -> Option<OsString> {
    variables
        .iter()
        .find(|(variable, value)| variable == name && !value.is_empty())
        .map(|(_, value)| value.clone())
}

/// Reads the variables. Returns warnings, too, about variables that look like ours but set nothing.
///
/// # Errors
/// When a value is wrong.
pub(super) fn read(
    variables: &[(OsString, OsString)],
    keys: &[Key],
) -> Result<(Given, Vec<String>), ConfigError> {
    let mut given = Given::new();
    for key in keys.iter().filter(|key| key.is_in_file()) {
        let name = variable(&key.name);
        let Some(value) = value(variables, &name) else { continue };
        let values = if key.many { split(&value) } else { vec![value] };
        for value in &values {
            if let Some(why) = key.complaint(value) {
                let (place, value) = ("environment".to_owned(), format!("{value:?}"));
                return Err(ConfigError::Value { place, name, value, why });
            }
        }
        given.insert(key.name.clone(), (values, Origin::Environment));
    }
    Ok((given, unknown(variables, keys)))
}

/// Splits several values at commas.
fn split(value: &OsStr) -> Vec<OsString> {
    let parts = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    parts.filter(|part| !part.is_empty()).map(|part| OsString::from_vec(part.to_vec())).collect()
}

fn unknown(variables: &[(OsString, OsString)], keys: &[Key]) -> Vec<String> {
    let known = || keys.iter().filter(|key| key.is_in_environment()).map(|key| variable(&key.name));
    let names = variables.iter().map(|(name, _)| name.to_string_lossy());
    let strange = names.filter(|name| {
        name.starts_with(PREFIX)
            && !OF_KUBERNETES.iter().any(|theirs| name.starts_with(theirs))
            && !known().any(|known| known == *name)
    });
    // Compare without the prefix, which would make all names similar.
    let bare = |name: &str| name.trim_start_matches(PREFIX).to_owned();
    let warn = |name: &str| match Key::nearest(known().map(|known| bare(&known)), &bare(name)) {
        Some(nearest) => format!("environment: {name} sets nothing: did you mean {PREFIX}{nearest}?"),
        None => format!("environment: {name} sets nothing"),
    };
    strange.map(|name| warn(&name)).collect()
}
