// Gives a fuzz target each file of a directory, for builds without libFuzzer. A file that finds
// something ends the program; its name is the last line.
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <set>
#include <vector>

#include "tests/fuzz/fuzz.h"

int main(int argc, char** argv) {
  std::set<std::filesystem::path> files;  // in one order everywhere
  for (int i = 1; i < argc; ++i) {
    if (std::filesystem::is_directory(argv[i]))
      for (const auto& entry : std::filesystem::directory_iterator(argv[i])) files.insert(entry);
    else
      files.insert(argv[i]);
  }
  for (const auto& path : files) {
    std::cout << path.string() << std::endl;
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  }
  if (files.empty()) std::cerr << "there is no file to replay\n";
  return files.empty() ? 1 : 0;
}
