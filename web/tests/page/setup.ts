import { makeVideos, previews } from "./made-videos.ts";

export default function setup(): void {
  makeVideos();
  previews();
}
