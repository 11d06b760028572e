// Runs one script and shows, where it fails, what was expected ('-') and what came out ('+').
#include <cstdio>
#include <exception>

#include "tests/scripts/runner/script.h"
#include "tests/scripts/runner/stage.h"

int main(int argc, char** argv) {
  using namespace trafficmirror::scripts;
  if (argc != 2) {
    std::fputs("usage: run_script FILE\n", stderr);
    return 2;
  }
  try {
    const Script script = read_script(argv[1]);
    Stage stage(script);
    if (stage.play()) return 0;
    std::printf("%s\n%s\n\n%s", argv[1], script.purpose.c_str(), stage.difference().c_str());
  } catch (const std::exception& error) {
    std::printf("%s: %s\n", argv[1], error.what());
  }
  return 1;
}
