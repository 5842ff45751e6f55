use super::*;

fn made(definitions: &[&'static str], text: &str) -> Vec<String> {
    let definitions: Vec<&[u8]> = definitions.iter().map(|text| text.as_bytes()).collect();
    let pasting = Pasting::of(&definitions);
    let show = |pattern: &Pattern| {
        pattern
            .iter()
            .map(|part| match part {
                Part::Fixed(text) => String::from_utf8_lossy(text).into_owned(),
                _ => "*".to_owned(),
            })
            .collect::<String>()
    };
    let mut names: Vec<String> = pasting.in_text(text.as_bytes()).iter().map(show).collect();
    names.extend(pasting.fixed().map(|pasted| {
        format!("{}={}", String::from_utf8_lossy(pasted.by.as_deref().unwrap_or_default()), show(&pasted.pattern))
    }));
    names.sort();
    names
}

#[test]
fn names_are_followed_through_macros() {
    let flag = ["FLAG(u, l) int Page##u(void) { return test_##l##_bit; }"];
    assert_eq!(made(&flag, "FLAG(Dirty, dirty)"), ["PageDirty", "test_dirty_bit"]);
    let paste = ["___P(a, b) a##b", "__P(a, b) ___P(a, b)", "ID(x) __P(__P(id_, x), __COUNTER__)", "USE(y) ID(y_)"];
    // What an inner call makes counts as a name of its own: one too many does no harm.
    let names = ["USE=id_y_", "USE=id_y___COUNTER__", "fg", "id_z", "id_z__COUNTER__"];
    assert_eq!(made(&paste, "__P(f, g); ID(z);"), names);
    let calls = ["D1(name, ...) DX(1, _##name, __VA_ARGS__)", "DX(n, s, ...) sys##s"];
    assert!(
        made(&calls, "D1(read, int, a)").contains(&"sys_read".to_owned()),
        "{:?}",
        made(&calls, "D1(read, int, a)")
    );
    let numbered = ["__P(a, b) a##b", "ID(x) __P(__KBUILD_MODNAME, x)", "CALL(x) __P(init_, __P(ID(x), 6))"];
    assert_eq!(made(&numbered, "CALL(y)"), ["init_kmod_*y6", "kmod_*y", "kmod_*y6"]);
    let plain = ["NAME value", "CAT(a) CAT2(a)", "CAT2(a) pre_##a"];
    assert_eq!(made(&plain, "CAT(NAME)"), ["pre_NAME", "pre_value"]);
    assert_eq!(made(&["F(fmt, ...) f(fmt, ##__VA_ARGS__)"], "F(\"a\", b)"), Vec::<String>::new());
}

/// Two macros that call each other, in more ways than are followed, one of which is not known.
#[test]
fn many_ways_in_a_circle_come_to_an_end() {
    let ways: String = (0..2 * MANY).map(|number| format!(" P(w{number}_, x)")).collect();
    let many: &'static str = format!("M(x) P(KBUILD_MODNAME, x){ways} N(x)").leak();
    let names = made(&["P(a, b) a##b", many, "N(y) M(y)"], "M(z); N(y)");
    assert!(names.contains(&"*z".to_owned()) && names.contains(&"*y".to_owned()), "{names:?}");
}

#[test]
fn patterns_fit_names() {
    let pattern = [Part::Fixed(b"a_".to_vec()), Part::Any, Part::Fixed(b"_z".to_vec())];
    assert!(fits(&pattern, b"a_b_z") && fits(&pattern, b"a__z") && !fits(&pattern, b"a_b") && !fits(&pattern, b"a_z"));
}
