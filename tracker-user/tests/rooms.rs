//! The rooms of this crate, its modules, and which of them use which: as `docs/architecture.md`
//! lists them, and never in a circle. A new arrow is entered there, by hand, or this fails.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that panics keeps the place and the reason"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// What each room uses.
type Arrows = BTreeMap<String, BTreeSet<String>>;

fn package() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files of Rust below a directory.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("read a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The first words of the paths that begin in the crate's root: `a` and `b` of
/// `crate::{a::X, b::{Y, Z}}`.
fn used(code: &str) -> BTreeSet<String> {
    let word =
        |text: &str| -> String { text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    let mut found = BTreeSet::new();
    for (at, path) in code.match_indices("crate::") {
        let rest = &code[at + path.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let (mut depth, mut is_first) = (0, true);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => is_first = true,
                c if depth == 0 && is_first && !c.is_whitespace() => {
                    found.insert(word(&group[at..]));
                    is_first = false;
                }
                _ => {}
            }
        }
    }
    found
}

/// A file without its comments and tests: these may use whatever they like.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("read a file");
    let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = product.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The arrows that the code has.
fn arrows() -> Arrows {
    let src = package().join("src");
    // A crate of its own, which can't use this one.
    let mut arrows = Arrows::from([("verdict".to_owned(), BTreeSet::new())]);
    for file in sources(&src) {
        let inside = file.strip_prefix(&src).expect("a file below src");
        let room = inside.iter().next().expect("a name").to_string_lossy();
        let room = room.trim_end_matches(".rs").to_owned();
        let is_entrance = matches!(room.as_str(), "lib" | "main");
        let is_test = file.file_name().is_some_and(|name| name == "tests.rs");
        if is_entrance || is_test {
            continue;
        }
        let mut uses = used(&code(&file));
        uses.remove(&room);
        arrows.entry(room).or_default().extend(uses);
    }
    arrows
}

/// The arrows that the document lists, a row for each room: name, what it is for, what it uses.
fn listed() -> Vec<(String, BTreeSet<String>)> {
    let path = package().join("../docs/architecture.md");
    let document = fs::read_to_string(path).expect("read the document");
    let (_, rooms) = document.split_once("\n## Rooms\n").expect("a chapter about rooms");
    let rows = rooms.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    let names = |cell: &str| -> BTreeSet<String> {
        cell.split('`').skip(1).step_by(2).map(|name| name.trim_end_matches('/').to_owned()).collect()
    };
    rows.take_while(|line| line.starts_with('|'))
        .map(|row| {
            let cells: Vec<&str> = row.split('|').collect();
            let room = names(cells[1]).into_iter().next().expect("a room");
            (room, names(cells[3]))
        })
        .collect()
}

/// Rooms from which one comes back to where one began.
fn circle(arrows: &Arrows) -> Option<Vec<String>> {
    let mut open = arrows.clone();
    // A room that uses none of those that are left is in no circle.
    while let Some(room) = open
        .iter()
        .find(|(_, uses)| uses.iter().all(|other| !open.contains_key(other)))
        .map(|(r, _)| r.clone())
    {
        open.remove(&room);
    }
    (!open.is_empty()).then(|| open.into_keys().collect())
}

#[test]
fn the_document_lists_every_arrow() {
    assert_eq!(arrows(), listed().into_iter().collect());
}

#[test]
fn the_document_lists_a_room_below_those_that_it_uses() {
    let mut above = BTreeSet::new();
    for (room, uses) in listed() {
        let below: Vec<_> = uses.difference(&above).collect();
        assert!(below.is_empty(), "{room} uses {below:?}, which are listed below it");
        above.insert(room);
    }
}

#[test]
fn there_is_no_circle() {
    assert_eq!(circle(&arrows()), None);
}

#[test]
fn a_circle_is_found() {
    let arrows = |list: &[(&str, &[&str])]| -> Arrows {
        list.iter().map(|(r, uses)| ((*r).into(), uses.iter().map(|u| (*u).into()).collect())).collect()
    };
    assert_eq!(circle(&arrows(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])])), None);
    let found = circle(&arrows(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"]), ("d", &[])]));
    assert_eq!(found, Some(vec!["a".into(), "b".into(), "c".into()]));
}

#[test]
fn paths_are_read() {
    let code = "use crate::{\n    a::{X, crate_like::Y},\n    b,\n};\nfn f() { crate::c::g() }";
    assert_eq!(used(code).into_iter().collect::<Vec<_>>(), ["a", "b", "c"]);
}
