"""Writes the golden files that the tests compare with, by running diffusers.

    python tools/make_fixtures.py [files] [kl] [tiny] [wan]
"""

import argparse

import fixtures_files
import fixtures_kl
import fixtures_tiny
import fixtures_wan

FAMILIES = {"files": fixtures_files, "kl": fixtures_kl, "tiny": fixtures_tiny, "wan": fixtures_wan}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", choices=[[], *FAMILIES], help="all when none is named")
    for name in parser.parse_args().families or FAMILIES:
        FAMILIES[name].write()


if __name__ == "__main__":
    main()
