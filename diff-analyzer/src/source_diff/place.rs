//! Where the hunks of a diff fit.
//!
//! Comes in: a text and hunks. Decided: the place of each: where the diff says, moved like the hunk before it, or the only other place
//! with its text. Goes out: the new text, and the hunks at their places.

use super::{DiffError, Edit, Hunk};
use diffy::Line;
use std::path::Path;

/// Applies hunks to a text.
pub(super) fn place(
    path: &Path,
    text: &[u8],
    hunks: &[diffy::Hunk<'_, [u8]>],
    diff_lines: &[usize],
) -> Result<(Vec<u8>, Vec<Hunk>), DiffError> {
    let old = lines(text);
    let (mut result, mut written) = (Vec::with_capacity(text.len()), 0);
    let (mut next, mut moved) = (0, 0isize);
    let mut placed = Vec::new();
    for (index, hunk) in hunks.iter().enumerate() {
        let diff_line = diff_lines.get(index).copied();
        let at = find(path, &old, next, moved, hunk, index + 1, diff_line.unwrap_or(0))?;
        moved = at as isize - stated(hunk) as isize;
        for line in &old[next..at] {
            result.extend_from_slice(line);
        }
        written += at - next;
        let (mut from, mut to) = (at, written);
        let mut edits: Vec<Edit> = Vec::new();
        for line in hunk.lines() {
            let (takes, gives, bytes) = match line {
                Line::Context(line) => (1, 1, *line),
                Line::Delete(_) => (1, 0, &b""[..]),
                Line::Insert(line) => (0, 1, *line),
            };
            result.extend_from_slice(bytes);
            if takes != gives {
                match edits.last_mut() {
                    Some(edit) if edit.old.end == from && edit.new.end == to => {
                        edit.old.end += takes;
                        edit.new.end += gives;
                    }
                    _ => edits.push(Edit { old: from..from + takes, new: to..to + gives }),
                }
            }
            from += takes;
            to += gives;
        }
        placed.push(Hunk { old: at..from, new: written..to, moved, diff_line, edits });
        (next, written) = (from, to);
    }
    for line in &old[next..] {
        result.extend_from_slice(line);
    }
    Ok((result, placed))
}

/// Where a hunk says it starts in the old text, from 0. An empty range names the line before it.
fn stated(hunk: &diffy::Hunk<'_, [u8]>) -> usize {
    let range = hunk.old_range();
    if range.is_empty() { range.start() } else { range.start().saturating_sub(1) }
}

/// Where a hunk fits: at its line, moved like the hunk before it, or at the only other place with its text.
fn find(
    path: &Path,
    old: &[&[u8]],
    next: usize,
    moved: isize,
    hunk: &diffy::Hunk<'_, [u8]>,
    number: usize,
    diff_line: usize,
) -> Result<usize, DiffError> {
    let side = |new: bool| -> Vec<&[u8]> {
        hunk.lines()
            .iter()
            .filter_map(|line| match line {
                Line::Context(line) => Some(*line),
                Line::Delete(line) => (!new).then_some(*line),
                Line::Insert(line) => new.then_some(*line),
            })
            .collect()
    };
    let wanted = side(false);
    let fits =
        |wanted: &[&[u8]], at: usize| at >= next && old.get(at..at + wanted.len()).is_some_and(|have| have == wanted);
    let near = stated(hunk).saturating_add_signed(moved);
    if fits(&wanted, near) {
        return Ok(near);
    }
    // Without old lines nothing says where it belongs but the number.
    if !wanted.is_empty() {
        let places: Vec<usize> =
            (next..=old.len().saturating_sub(wanted.len())).filter(|&at| fits(&wanted, at)).collect();
        match places.as_slice() {
            [] => {}
            [at] => return Ok(*at),
            _ => {
                let places = places.iter().map(|at| at + 1).collect();
                return Err(DiffError::Ambiguous { path: path.to_owned(), hunk: number, diff_line, places });
            }
        }
    }
    let end: &[u8] = b"(end of file)";
    let have = |index: usize| old.get(near + index).copied().unwrap_or(end);
    let wrong = (0..wanted.len()).find(|&index| have(index) != wanted[index]).unwrap_or(0);
    Err(DiffError::Mismatch {
        path: path.to_owned(),
        hunk: number,
        diff_line,
        line: near + wrong + 1,
        expected: shown(wanted.get(wrong).copied().unwrap_or(end)),
        found: shown(have(wrong)),
        applied: fits(&side(true), hunk.new_range().start().saturating_sub(1)),
    })
}

/// A text as lines with their line ends.
pub fn lines(text: &[u8]) -> Vec<&[u8]> {
    text.split_inclusive(|&byte| byte == b'\n').collect()
}

pub(super) fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim_end_matches('\n').replace('\r', "\\r").trim().to_owned()
}
