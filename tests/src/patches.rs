//! Kernel diffs from scripted edits of a source tree.
//!
//! Comes in: a tree, edits (file, text to find, text to put there). Decided: an edit must find its text exactly once, so
//! that a changed kernel source shows at once. Goes out: a unified diff; the tree is never modified.

use serde::{Deserialize, Serialize};
use similar::TextDiff;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One change of a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// File, relative to the source tree.
    pub file: String,
    /// Text that stands in it exactly once.
    pub find: String,
    /// What stands there afterwards.
    pub replace: String,
}

/// Why a diff could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// The file to edit.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not there, or more than once.
    #[error(
        "{file}: the text to replace stands there {found} times, expected once: {find:?}; adapt the edit to this kernel"
    )]
    Find {
        /// The file.
        file: String,
        /// What was looked for.
        find: String,
        /// How often it is there.
        found: usize,
    },
}

/// The patch that demo and tests apply first: `/proc/version` begins with another word.
pub fn visible() -> Edit {
    Edit {
        file: "fs/proc/version.c".to_owned(),
        find: "\tseq_printf(m, linux_proc_banner,".to_owned(),
        replace: "\tseq_puts(m, \"Updated \");\n\tseq_printf(m, linux_proc_banner,".to_owned(),
    }
}

/// New code that does, on request, everything for which the kernel needs tables about it. A reader of `/proc/cmdline` asks by
/// its name, `@` and a letter:
///
/// | letter | what happens |
/// | --- | --- |
/// | f | an access to user memory that faults; the result is shown |
/// | w, W | `WARN_ON_ONCE`, `WARN` |
/// | d | `dump_stack` |
/// | p | `pr_debug` |
/// | s, L | 3 s asleep, 2 s busy |
/// | t | a tracepoint of the scheduler |
/// | c | a point where it lets others run, which is a static call where preemption can be chosen at run time |
/// | i | an indirect call; whether the clock runs is shown |
/// | o | a write to where nothing is: an oops |
/// | a | whether the addresses 4096 and 2^56 may be a program's |
/// | any | `enabled` is shown while the static key `sched_schedstats` is on |
pub fn citizen() -> Vec<Edit> {
    let edit = |find: &str, replace: &str| Edit {
        file: "fs/proc/cmdline.c".to_owned(),
        find: find.to_owned(),
        replace: replace.to_owned(),
    };
    vec![
        edit(
            "#include <linux/seq_file.h>\n",
            r#"#include <linux/seq_file.h>
#include <linux/delay.h>
#include <linux/kprobes.h>
#include <linux/sched/debug.h>
#include <linux/static_key.h>
#include <linux/timekeeping.h>
#include <linux/uaccess.h>
#include <trace/events/sched.h>

DECLARE_STATIC_KEY_FALSE(sched_schedstats);

static noinline int faulting_access(void)
{
	int value;

	if (!user_access_begin((void __user *)8, 4))
		return -1;
	unsafe_get_user(value, (int __user *)8, fault);
	user_access_end();
	return value;
fault:
	user_access_end();
	return -EFAULT;
}
NOKPROBE_SYMBOL(faulting_access);
"#,
        ),
        edit(
            "\tseq_puts(m, saved_command_line);",
            r#"	char request = current->comm[0] == '@' ? current->comm[1] : 0;

	if (request) {
		if (request == 'f')
			seq_printf(m, "result %d ", faulting_access());
		WARN_ON_ONCE(request == 'w');
		WARN(request == 'W', "asked for by %d\n", current->pid);
		if (request == 'd')
			dump_stack();
		if (request == 'p')
			pr_debug("asked for by %d\n", current->pid);
		if (request == 's')
			msleep(3000);
		if (request == 'L')
			mdelay(2000);
		if (request == 'a')
			seq_printf(m, "access %d%d ", access_ok((void __user *)4096, 1),
				   access_ok((void __user *)(1UL << 56), 1));
		if (request == 't')
			trace_sched_process_wait(NULL);
		if (request == 'c')
			cond_resched();
		if (request == 'i') {
			u64 (*volatile clock)(void) = ktime_get_mono_fast_ns;

			seq_printf(m, "clock %d ", clock() != 0);
		}
		if (request == 'o')
			WRITE_ONCE(*(int *)8, request);
		if (static_branch_unlikely(&sched_schedstats))
			seq_puts(m, "enabled ");
	}
	seq_puts(m, saved_command_line);"#,
        ),
    ]
}

/// A change of a function on which all paths depend, and in whose code boot has put a table's address and size where the kernel has
/// such constants (`d_hash`, fs/dcache.c). It says so once, [`LOOKED_UP`].
pub fn lookup() -> Edit {
    let declarations = "\tstruct dentry *found = NULL;\n\tstruct dentry *dentry;\n";
    Edit {
        file: "fs/dcache.c".to_owned(),
        find: declarations.to_owned(),
        replace: format!("{declarations}\n\tpr_info_once(\"{LOOKED_UP}\\n\");\n"),
    }
}

/// What [`lookup`] says.
pub const LOOKED_UP: &str = "names are looked up by new code";

/// File whose text [`visible`] changes.
pub const VISIBLE_FILE: &str = "/proc/version";
/// First word of it as shipped, and as updated.
pub const VISIBLE_WORDS: [&str; 2] = ["Linux", "Updated"];

/// Unified diff of two texts with the usual file headers; empty when they are equal.
pub fn unified(file: &str, old: &str, new: &str) -> String {
    unified_change(file, Some(old), Some(new))
}

/// Unified diff of a file that may be new or go away; empty when nothing differs.
pub fn unified_change(file: &str, old: Option<&str>, new: Option<&str>) -> String {
    let name = |side: &str, text: Option<&str>| text.map_or("/dev/null".to_owned(), |_| format!("{side}/{file}"));
    TextDiff::from_lines(old.unwrap_or_default(), new.unwrap_or_default())
        .unified_diff()
        .context_radius(3)
        .header(&name("a", old), &name("b", new))
        .to_string()
}

/// Makes the diff of some edits.
///
/// # Errors
/// [`PatchError`] when a file cannot be read or an edit does not fit it.
pub fn diff(tree: &Path, edits: &[Edit]) -> Result<String, PatchError> {
    let mut texts: BTreeMap<&str, (String, String)> = BTreeMap::new();
    for edit in edits {
        let (_, new) = match texts.entry(&edit.file) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let path = tree.join(&edit.file);
                let text = std::fs::read_to_string(&path).map_err(|source| PatchError::Read { path, source })?;
                entry.insert((text.clone(), text))
            }
        };
        *new = replace_once(&edit.file, new, &edit.find, &edit.replace)?;
    }
    Ok(texts.iter().map(|(file, (old, new))| unified(file, old, new)).collect())
}

/// Replaces the one place where `find` stands.
///
/// # Errors
/// [`PatchError::Find`] when it stands there not exactly once.
pub fn replace_once(file: &str, text: &str, find: &str, replace: &str) -> Result<String, PatchError> {
    match text.matches(find).count() {
        1 => Ok(text.replacen(find, replace, 1)),
        found => Err(PatchError::Find { file: file.to_owned(), find: find.to_owned(), found }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_has_headers_and_context() {
        let tree = tempfile::tempdir().expect("a folder");
        std::fs::write(tree.path().join("x.c"), "one\ntwo\nthree\n").expect("a file");
        let edit = Edit { file: "x.c".into(), find: "two".into(), replace: "2".into() };
        let text = diff(tree.path(), std::slice::from_ref(&edit)).expect("a diff");
        assert_eq!(text, "--- a/x.c\n+++ b/x.c\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n");
        let twice = Edit { find: "t".into(), ..edit };
        assert!(matches!(diff(tree.path(), &[twice]), Err(PatchError::Find { found: 2, .. })));
    }
}
