#!/usr/bin/env python3
"""Prints the licences of the crates that are in the program, as the crates bring them: what has to come with a binary.

usage: third_party_licences.py TARGET [CARGO-OPTION...]
"""
import collections
import json
import pathlib
import re
import subprocess
import sys

NOTICE = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)


def metadata(target, options):
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target, *options]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def linked(metadata):
    """Ids of the packages that are linked into the program: dependencies for building and testing are not."""
    dependencies = {node["id"]: node["deps"] for node in metadata["resolve"]["nodes"]}
    found, waiting = set(), [metadata["resolve"]["root"]]
    while waiting:
        package = waiting.pop()
        if package not in found:
            found.add(package)
            waiting += [
                dependency["pkg"]
                for dependency in dependencies[package]
                if any(kind["kind"] is None for kind in dependency["dep_kinds"])
            ]
    return found


def notices(package):
    """Texts of a crate's licence files: beside its Cargo.toml, or in a folder that is called so."""
    directory = pathlib.Path(package["manifest_path"]).parent
    files = [entry for entry in directory.iterdir() if NOTICE.match(entry.name)]
    files += [entry for folder in files if folder.is_dir() for entry in folder.iterdir()]
    named = package.get("license_file")
    files += [directory / named] if named else []
    texts = {file.read_text(errors="replace").strip() for file in files if file.is_file() and file.suffix != ".rs"}
    return sorted(text for text in texts if text)


def main():
    target, *options = sys.argv[1:]
    project = metadata(target, options)
    ids, ours = linked(project), set(project["workspace_members"])
    packages = [package for package in project["packages"] if package["id"] in ids - ours]
    packages.sort(key=lambda package: (package["name"], package["version"]))

    users = collections.defaultdict(list)
    print(f"Kinetoscope contains these {len(packages)} crates. Their sources are at the addresses named and on crates.io.\n")
    for package in packages:
        name = f"{package['name']} {package['version']}"
        print(f"* {name}: {package['license']}, {package['repository'] or 'no address'}")
        texts = notices(package)
        for text in texts:
            users[text].append(name)
        if not texts:
            print(f"  by {', '.join(package['authors']) or 'authors that it does not name'}; it brings no licence text of its own")
    for text, names in sorted(users.items(), key=lambda item: item[1]):
        print("\n" + "=" * 120)
        print(f"{', '.join(names)}:\n\n{text}")


main()
