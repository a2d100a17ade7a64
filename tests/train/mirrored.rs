//! Classes whose names differ by a direction.

use kinetoscope::train::dataset::{Mirrored, mirrored_classes};

fn pairs(classes: &[&str]) -> Vec<(String, String)> {
    let classes: Vec<String> = classes.iter().map(|class| (*class).to_owned()).collect();
    mirrored_classes(&classes).into_iter().map(|Mirrored { one, other }| (one, other)).collect()
}

#[test]
fn names_that_differ_by_a_direction_are_found() {
    for (one, other) in [
        ("left", "right"),
        ("pan left", "pan right"),
        ("turn_left", "right turn"),
        ("TurnLeft", "TurnRight"),
        ("leftturn", "rightturn"),
        ("SwipeL", "SwipeR"),
        ("Swiping Left", "swiping right"),
        ("Turning Hand Clockwise", "Turning Hand Counterclockwise"),
        ("rotate clockwise", "rotate anti-clockwise"),
        ("spin_cw", "spin_ccw"),
        ("hand up", "hand down"),
        ("rolling backward", "rolling forward"),
        ("links abbiegen", "rechts abbiegen"),
        ("im Uhrzeigersinn drehen", "gegen den Uhrzeigersinn drehen"),
        ("tourner à gauche", "tourner à droite"),
        ("girar izquierda", "girar derecha"),
        ("налево", "направо"),
        ("左转", "右转"),
        ("向左挥手", "向右挥手"),
        ("왼쪽", "오른쪽"),
        ("Pushing something from left to right", "Pushing something from right to left"),
    ] {
        assert_eq!(pairs(&[one, "other", other]), [(one.to_owned(), other.to_owned())]);
    }
}

#[test]
fn other_names_are_not() {
    for classes in [
        &["left", "run"][..],
        &["turn left", "walk right"],
        &["sitting", "standing", "walking"],
        &["bright", "brief"],
        &["left hand", "left foot"],
        &["push", "pushup", "cleft", "upright"],
    ] {
        assert_eq!(pairs(classes), [], "{classes:?}");
    }
}
