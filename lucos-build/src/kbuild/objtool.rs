//! objtool on the object of one unit, also where the kernel's build runs it on the linked image only.
//!
//! Comes in: a command that calls objtool. Decided: which of its actions are about a whole image, or check and change nothing.
//! Goes out: the command without these, so that the object gets what the image has of it: ORC entries, the lists of
//! retpolines, returns, calls and static calls.

use crate::identity::Config;

/// For make's command line: have objtool run on each unit (scripts/Makefile.lib, `delay-objtool`). A variable of the command line
/// goes before the makefiles', and a kernel without it does not mind.
pub const NOT_DELAYED: &str = "delay-objtool=";

/// What objtool does to the whole image only, or checks without changing anything (tools/objtool/builtin-check.c).
const WHOLE_IMAGE: &[&str] = &["--link", "--ibt", "--cfi", "--noinstr", "--unret", "-l", "-i", "-n"];

/// Whether the build runs objtool on the linked image only (scripts/Makefile.lib, `delay-objtool`).
pub fn is_delayed(config: &Config<'_>) -> bool {
    let set = |option: &str| config.get(option) == Some("y");
    set("CONFIG_OBJTOOL") && (set("CONFIG_X86_KERNEL_IBT") || set("CONFIG_LTO_CLANG"))
}

/// Whether a program is objtool.
pub fn is_objtool(program: &str) -> bool {
    program.rsplit('/').next() == Some("objtool")
}

/// The command without what only a whole image can have.
#[must_use]
pub fn for_one_object(mut words: Vec<String>) -> Vec<String> {
    words.retain(|word| !WHOLE_IMAGE.contains(&word.as_str()));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_whole_image_has_is_left_out() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let line = "./tools/objtool/objtool --hacks=noinstr --ibt --orc --sls --noinstr --link --prefix=16 a.o";
        let kept = for_one_object(words(line));
        assert_eq!(kept, words("./tools/objtool/objtool --hacks=noinstr --orc --sls --prefix=16 a.o"));
        assert!(is_objtool(&kept[0]) && !is_objtool("objtool/ld"));
    }

    #[test]
    fn it_is_delayed_by_the_configuration() {
        for (text, delayed) in [
            ("CONFIG_OBJTOOL=y\n", false),
            ("CONFIG_OBJTOOL=y\nCONFIG_X86_KERNEL_IBT=y\n", true),
            ("CONFIG_OBJTOOL=y\nCONFIG_LTO_CLANG=y\n", true),
            ("CONFIG_X86_KERNEL_IBT=y\n", false),
        ] {
            assert_eq!(is_delayed(&Config::parse(text)), delayed, "{text}");
        }
    }
}
