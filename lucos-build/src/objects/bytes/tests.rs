//! New bytes of made-up types.

use super::added;
use crate::report::Reason;
use diff_analyzer::dwarf_layout::{Member, Shape, TypeKind, TypeLayout};
use diff_analyzer::layout_diff::{Effect, MemberChange, MemberSide};
use lpk_format::AddedBytes;
use std::collections::BTreeMap;

fn member(name: &str, offset: u64, size: u64, shape: Shape) -> Member {
    Member {
        name: name.to_owned(),
        bit_offset: offset * 8,
        bit_size: size * 8,
        bit_field: false,
        type_text: String::new(),
        declaration: String::new(),
        shape,
        embeds: Vec::new(),
        members: Vec::new(),
        place: None,
    }
}

fn layout(name: &str, size: u64, members: Vec<Member>) -> TypeLayout {
    TypeLayout {
        name: name.to_owned(),
        kind: TypeKind::Struct,
        size,
        align: 8,
        members,
        enumerators: Vec::new(),
        target: None,
        embeds: Vec::new(),
        place: None,
    }
}

fn old_members() -> Vec<Member> {
    vec![member("id", 0, 4, Shape::Signed(4)), member("next", 8, 8, Shape::Pointer)]
}

/// What new members of a struct with an `int` at 0, a hole at 4 and a pointer at 8 come to.
fn with(more: Vec<Member>, values: &[(&str, i64)]) -> Result<Vec<AddedBytes>, Box<Reason>> {
    of(old_members(), more, values)
}

fn of(old: Vec<Member>, more: Vec<Member>, values: &[(&str, i64)]) -> Result<Vec<AddedBytes>, Box<Reason>> {
    let side = |member: &Member| MemberSide {
        bit_offset: member.bit_offset,
        bit_size: member.bit_size,
        type_text: String::new(),
    };
    let changes = more.iter().map(|member| MemberChange {
        name: member.name.clone(),
        renamed_to: None,
        old: None,
        new: Some(side(member)),
        effect: Effect::Layout,
        place: None,
    });
    let changes: Vec<MemberChange> = changes.collect();
    let inner =
        layout("struct inner", 8, vec![member("a", 0, 1, Shape::Unsigned(1)), member("b", 4, 4, Shape::Signed(4))]);
    let list = layout(
        "struct list_head",
        16,
        vec![member("next", 0, 8, Shape::Pointer), member("prev", 8, 8, Shape::Pointer)],
    );
    let held = layout("struct held", 16, vec![member("list", 0, 16, Shape::Named("struct list_head".to_owned()))]);
    let inside = [inner, list, held].map(|layout| (layout.name.clone(), layout));
    let all = old.iter().cloned().chain(more).collect();
    let layouts = [layout("struct x", 16, old), layout("struct x", 64, all)];
    let values = values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    added(&layouts, &changes, &BTreeMap::from(inside), &values)
}

fn bytes(offset: u32, bytes: &[u8]) -> AddedBytes {
    AddedBytes { offset, bytes: bytes.to_vec() }
}

fn refusal(result: Result<Vec<AddedBytes>, Box<Reason>>) -> (String, String) {
    let reason = result.expect_err("refused");
    (reason.rule.clone(), reason.message.clone())
}

#[test]
fn new_bytes_are_zero_or_the_value_given() {
    let flag = || member("flag", 4, 2, Shape::Unsigned(2));
    assert_eq!(with(vec![flag()], &[]).expect("new"), [bytes(4, &[0, 0])]);
    assert_eq!(with(vec![flag()], &[("flag", 0xfffe)]).expect("new"), [bytes(4, &[0xfe, 0xff])]);
    let more = vec![flag(), member("low", 6, 1, Shape::Signed(1)), member("far", 24, 8, Shape::Signed(8))];
    let found = with(more, &[("low", -128), ("far", i64::MIN)]).expect("new");
    assert_eq!(found, [bytes(4, &[0, 0, 0x80]), bytes(24, &[0, 0, 0, 0, 0, 0, 0, 0x80])]);
}

#[test]
fn parts_of_new_members_are_named_by_path() {
    let inner = || Shape::Named("struct inner".to_owned());
    let pair = member("pair", 16, 16, Shape::Array(Some(2), Box::new(inner())));
    let found = with(vec![pair.clone()], &[("pair[1].b", 3), ("pair[0].a", 255)]).expect("new");
    assert_eq!(found, [bytes(16, &[255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0])]);
    for path in ["pair[2].b", "pair[1].c", "pair[x]", "pair.b", "pai", "next", "id", ""] {
        assert_eq!(refusal(with(vec![pair.clone()], &[(path, 1)])).0, "override-unused", "{path}");
    }
    assert_eq!(refusal(with(vec![pair], &[("pair[1]", 1)])).0, "override-refused");
}

#[test]
fn what_does_not_fit_is_refused() {
    let of = |shape: Shape, size, value| with(vec![member("new", 16, size, shape)], &[("new", value)]);
    for (shape, size, value) in [
        (Shape::Unsigned(1), 1, 256),
        (Shape::Unsigned(1), 1, -1),
        (Shape::Unsigned(8), 8, -1),
        (Shape::Signed(1), 1, 128),
        (Shape::Signed(4), 4, -0x8000_0001),
        (Shape::Pointer, 8, 1),
        (Shape::Other("double".to_owned()), 8, 1),
    ] {
        assert_eq!(refusal(of(shape.clone(), size, value)).0, "override-refused", "{shape:?} = {value}");
    }
    assert!(of(Shape::Pointer, 8, 0).is_ok() && of(Shape::Unsigned(8), 8, i64::MAX).is_ok());
    assert!(of(Shape::Signed(16), 16, 1).is_err(), "a number of 16 bytes");
}

#[test]
fn bytes_that_are_not_all_new_are_refused() {
    let mut bit = member("bit", 4, 0, Shape::Unsigned(4));
    (bit.bit_field, bit.bit_size) = (true, 1);
    assert!(refusal(with(vec![bit], &[])).1.contains("bit-field"));
    let mut old = old_members();
    let mut bits = member("bits", 4, 0, Shape::Unsigned(4));
    (bits.bit_field, bits.bit_size) = (true, 3);
    old.push(bits);
    let shares = of(old, vec![member("new", 4, 2, Shape::Unsigned(2))], &[]);
    assert!(refusal(shares).1.contains("shares byte 4"));
    let mut open = old_members();
    open.push(member("name", 16, 0, Shape::Array(None, Box::new(Shape::Signed(1)))));
    let behind = of(open, vec![member("new", 16, 4, Shape::Signed(4))], &[]);
    assert!(refusal(behind).1.contains("no end"));
    assert!(refusal(with(vec![member("new", 9000, 4, Shape::Signed(4))], &[])).1.contains("beyond"));
    assert!(refusal(with(vec![], &[])).1.contains("no byte"));
}

#[test]
fn what_zero_does_not_make_ready_has_to_be_spoken_of() {
    let held = || member("held", 16, 16, Shape::Named("struct held".to_owned()));
    assert!(refusal(with(vec![held()], &[])).1.contains("`held.list` is a `struct list_head`"));
    for path in ["held", "held.list"] {
        assert_eq!(with(vec![held()], &[(path, 0)]).expect("ready"), [bytes(16, &[0; 16])]);
    }
    assert!(with(vec![held()], &[("held.list.next", 0)]).is_err());
}
