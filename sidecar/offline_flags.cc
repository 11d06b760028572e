#include "sidecar/offline_flags.h"

#include <charconv>

#include <CLI/App.hpp>
#include <sys/stat.h>

#include "program/flags.h"
#include "program/start_error.h"

namespace trafficmirror::sidecar {
namespace {

std::optional<uint32_t> parse_count(const std::string& text, uint32_t most) {
  uint32_t count = 0;
  const char* const last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), last, count);
  if (error != std::errc() || end != last || count == 0 || count > most) return std::nullopt;
  return count;
}

// A number from 1 to `most`.
CLI::Option* add_count(CLI::App& app, const std::string& name, uint32_t& value, uint32_t most,
                       const std::string& help) {
  return program::add_text(app, name, "NUMBER", std::to_string(value), help,
                           [&value, most](const std::string& text) -> std::optional<std::string> {
                             const auto count = parse_count(text, most);
                             if (!count)
                               return "is no count; write a number from 1 to " +
                                      std::to_string(most);
                             value = *count;
                             return std::nullopt;
                           });
}

CLI::Option* add_moment(CLI::App& app, const std::string& name,
                        std::optional<replay::Moment>& value, const std::string& help) {
  return program::add_text(
      app, name, "TIME", "", help, [&value](const std::string& text) -> std::optional<std::string> {
        value = replay::parse_moment(text);
        if (value) return std::nullopt;
        return "is no time; write it like 2024-05-01T12:00:00Z, or like 90s from the first packet "
               "on";
      });
}

bool given(const CLI::Option* option) {
  return option->count() > 0;
}

}  // namespace

OfflineFlags::OfflineFlags(CLI::App& app) {
  const char* const offline = "Replaying and recording";
  program::add_name(app, "--pcap", "FILE", pcap_,
                    "replay this capture, - for stdin, in place of live traffic, and end: pcap or "
                    "pcapng, also packed by gzip or zstd")
      ->group(offline);
  of_replay_ = {
      program::add_text(
          app, "--speed", "1|2x|max", "1",
          "pace of the replay: a multiple of the capture's own, or as fast as it goes",
          [this](const std::string& text) -> std::optional<std::string> {
            const auto speed = replay::parse_speed(text);
            if (!speed)
              return "is no speed; write it like 1, 2x or 0.5x (0.01 to 1000), or "
                     "max";
            replay_.schedule.speed = *speed;
            return std::nullopt;
          }),
      add_count(app, "--loop", replay_.rounds, 1'000'000, "replay the file so many times"),
      add_moment(app, "--from", replay_.schedule.from,
                 "leave out what was captured before: RFC 3339, or like 90s from the first packet "
                 "on"),
      add_moment(app, "--until", replay_.schedule.until,
                 "leave out what was captured then and later"),
      program::add_name(app, "--report", "FILE", report_,
                        "write the report at the replay's end into this file, too"),
  };
  record_flag_ = program::add_name(app, "--record", "FILE", record_.path,
                                   "write what is captured into this file, to be replayed later");
  of_record_ = {
      program::add_size(app, "--record-size", record_.file_bytes,
                        "a file of that size becomes FILE.1, the one before FILE.2, ...",
                        capture::Recorder::least_file_bytes),
      add_count(app, "--record-files", record_.files, 10'000,
                "files that are kept, the current one among them"),
  };
  for (const auto& flags : {of_replay_, of_record_, {record_flag_}})
    for (const CLI::Option* flag : flags) app.get_option(flag->get_name())->group(offline);
}

void OfflineFlags::check(std::initializer_list<const CLI::Option*> live) const {
  using program::StartError;
  const bool replays = !pcap_.empty();
  for (const CLI::Option* flag : live)
    if (replays && given(flag))
      throw StartError(flag->get_name() + " is for live traffic; --pcap replays a file");
  for (const CLI::Option* flag : of_replay_)
    if (!replays && given(flag))
      throw StartError(flag->get_name() + " is for a replay; name the file with --pcap");
  if (replays && given(record_flag_))
    throw StartError("--record is for live traffic; --pcap replays a file, which is a recording");
  for (const CLI::Option* flag : of_record_)
    if (!given(record_flag_) && given(flag))
      throw StartError(flag->get_name() + " is for a recording; name its file with --record");

  struct stat status {};
  const bool can_be_read_again =
      pcap_ != "-" && (::stat(pcap_.c_str(), &status) != 0 || S_ISREG(status.st_mode));
  if (replays && replay_.rounds > 1 && !can_be_read_again)
    throw StartError("--loop needs a file that can be read again; --pcap " + pcap_ + " can't");
  if (replay::nothing_within(replay_.schedule))
    throw StartError("--until is not later than --from: nothing is between them");
}

std::optional<replay::Options> OfflineFlags::replay() const {
  if (pcap_.empty()) return std::nullopt;
  replay::Options options = replay_;
  options.path = pcap_;
  return options;
}

std::optional<capture::Recorder::Options> OfflineFlags::record() const {
  return record_.path.empty() ? std::nullopt : std::optional(record_);
}

}  // namespace trafficmirror::sidecar
