#include "tests/scripts/runner/script.h"

#include <cmath>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace trafficmirror::scripts {
namespace {

class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path), file_(path) {
    if (!file_) throw std::runtime_error(path + ": cannot be read");
  }

  Script read() {
    Script script;
    std::string text;
    while (std::getline(file_, text)) {
      ++number_;
      const size_t comment = text.find('#');
      if (number_ == 1) {
        if (comment != 0) fail("the first line has to say the purpose, behind a '#'");
        script.purpose = text.substr(text.find_first_not_of("# "));
        continue;
      }
      // A '#' directly behind a word is a number ("shadow#1"), not a comment.
      if (comment != std::string::npos && (comment == 0 || text[comment - 1] == ' '))
        text.erase(comment);
      std::vector<std::string> words = split(text);
      if (words.empty()) continue;
      if (words[0] == "set") {
        if (words.size() != 3) fail("set NAME VALUE");
        script.settings[words[1]] = words[2];
        continue;
      }
      script.lines.push_back(read_line(text, words));
    }
    return script;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(path_ + ":" + std::to_string(number_) + ": " + what);
  }

  static std::vector<std::string> split(std::string text) {
    for (char& c : text)
      if (c == '\t' || c == ',' || c == '\r') c = ' ';
    std::istringstream stream(text);
    std::vector<std::string> words;
    for (std::string word; stream >> word;) words.push_back(word);
    return words;
  }

  uint32_t number(const std::string& word) const {
    size_t used = 0;
    uint64_t value = 0;
    try {
      value = std::stoull(word, &used);
    } catch (const std::exception&) {
      fail("'" + word + "' is no number");
    }
    if (used != word.size()) fail("'" + word + "' is no number");
    return static_cast<uint32_t>(value);
  }

  // "1.5" from the beginning, or "+.5" from the line before.
  session::Time time(std::string word) {
    const bool relative = word[0] == '+';
    if (relative) word.erase(0, 1);
    double seconds = 0;
    try {
      seconds = std::stod(word);
    } catch (const std::exception&) {
      fail("'" + word + "' is no time");
    }
    const session::Duration duration(std::llround(seconds * 1e6));
    const session::Time at = relative ? last_ + duration : session::Time{} + duration;
    if (at < last_) fail("time goes back");
    return last_ = at;
  }

  Line read_line(const std::string& text, const std::vector<std::string>& words) {
    Line line;
    line.number = number_;
    line.text = text;
    line.at = time(words[0]);
    if (words.size() < 2) fail("TIME WHO WHAT");
    std::string who = words[1];
    if (const size_t mark = who.find('#'); mark != std::string::npos) {
      line.index = number(who.substr(mark + 1));
      who.erase(mark);
    }
    size_t next = 2;
    if (who == "client") {
      line.who = Who::client;
    } else if (who == "server") {
      line.who = Who::server;
    } else if (who == "shadow") {
      line.who = Who::shadow;
    } else if (who == ">") {
      line.who = Who::output;
    } else {
      next = 1;
    }
    line.words.assign(words.begin() + static_cast<std::ptrdiff_t>(next), words.end());
    const bool says_reason =
        !line.words.empty() && (line.words[0] == "closed" || line.words[0] == "shed");
    line.is_packet = line.who != Who::event && !says_reason;
    if (line.is_packet) read_packet(line.words, line.packet);
    return line;
  }

  void read_packet(const std::vector<std::string>& words, PacketLine& packet) {
    if (words.size() < 2) fail("FLAGS SEQUENCE");
    for (const char flag : words[0]) {
      switch (flag) {
        case 'S':
          packet.flags.syn = true;
          break;
        case 'F':
          packet.flags.fin = true;
          break;
        case 'R':
          packet.flags.rst = true;
          break;
        case 'P':
          packet.flags.psh = true;
          break;
        case '.':
          packet.flags.ack = true;
          break;
        default:
          fail("'" + words[0] + "' are no flags: S F R P .");
      }
    }
    // FIRST, or FIRST:END.
    const size_t colon = words[1].find(':');
    packet.sequence = number(words[1].substr(0, colon));
    if (colon != std::string::npos)
      packet.length = number(words[1].substr(colon + 1)) - packet.sequence;
    size_t at = 2;
    const auto value = [&]() -> uint32_t {
      if (++at >= words.size()) fail("a value is missing behind '" + words[at - 1] + "'");
      return number(words[at]);
    };
    for (; at < words.size(); ++at) {
      const std::string& word = words[at];
      if (word == "ack") {
        packet.acknowledgment = value();
      } else if (word == "win") {
        packet.window = static_cast<uint16_t>(value());
      } else if (word == "data") {
        packet.data = value();
      } else if (word == "captured") {
        packet.captured = value();
      } else if (word == "options") {  // exactly those that follow
        packet.any_options = false;
      } else if (word == "mss") {
        packet.options.maximum_segment_size = static_cast<uint16_t>(value());
      } else if (word == "wscale") {
        packet.options.window_scale = static_cast<uint8_t>(value());
      } else if (word == "sackOK") {
        packet.options.sack_permitted = true;
      } else if (word == "ts" && (at + 1 == words.size() || !isdigit(words[at + 1][0]))) {
        packet.any_timestamps = true;
      } else if (word == "ts") {
        const uint32_t first = value();
        packet.options.timestamps = net::TcpTimestamps{first, value()};
      } else if (word == "sack") {
        if (++at >= words.size()) fail("sack FIRST:END");
        const size_t mark = words[at].find(':');
        if (mark == std::string::npos) fail("sack FIRST:END");
        packet.options.sack_blocks.push_back(
            {net::SequenceNumber(number(words[at].substr(0, mark))),
             net::SequenceNumber(number(words[at].substr(mark + 1)))});
      } else {
        fail("'" + word + "' is not known");
      }
    }
  }

  std::string path_;
  std::ifstream file_;
  int number_ = 0;
  session::Time last_{};
};

}  // namespace

Script read_script(const std::string& path) {
  return Reader(path).read();
}

}  // namespace trafficmirror::scripts
